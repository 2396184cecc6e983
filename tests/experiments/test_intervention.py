"""Interventions measured on a tiny model: each number again by hand, each question asked once."""

import functools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders.judges import BY_HASH, by_hash
from builders.quick import find
from builders.runs import lines_of
from safety_neurons.calibration.calibration import calibrate
from safety_neurons.calibration.config import CalibrationConfig
from safety_neurons.core.progress import Silence
from safety_neurons.core.statistics import Verdict
from safety_neurons.experiments import intervention as intervention_module
from safety_neurons.experiments.intervention import Intervention, InterventionRunner, Measurement, moved
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import generate
from safety_neurons.models.likelihood import kl_divergence, nll, read_answers
from safety_neurons.models.prefix_cache import PrefixCache
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.prompts import Prompt
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.folder import RunFolder
from safety_neurons.settings import Settings

TOKENS = 5


@pytest.fixture
def neurons(model: ChatModel, harmful: list[str], benign: list[str]) -> NeuronSet:
    return find(model, harmful, benign, percent=25, positions=3)


@pytest.fixture
def sets(harmful: list[str], benign: list[str]) -> dict[str, list[Prompt]]:
    return {
        name: [Prompt(f"{name}-{number}", text) for number, text in enumerate(texts)]
        for name, texts in (("harmful", harmful), ("benign", benign[:2]))
    }


@pytest.fixture
def run(model: ChatModel, tmp_path: Path) -> RunContext:
    settings = Settings.model_validate(
        {
            "batch_size": 4,
            "find": {"positions": 3},
            "evaluate": {"answer_tokens": TOKENS, "judge": BY_HASH.name},
        }
    )
    made = RunContext(RunFolder(tmp_path), settings, {}, Silence())
    # In place of the model that the settings name.
    made.__dict__["model"] = model
    return made


def intervention(neurons: NeuronSet, alpha: float = 20, **overrides: Any) -> Intervention:
    return Intervention("found", neurons, "conformity", alpha, CalibrationConfig(**{"prompt_positions": 3} | overrides))


class Passes:
    """How often the model is run from here on."""

    def __init__(self, model: ChatModel) -> None:
        self.count = 0
        model.model.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.count += 1


def near(one: Measurement, other: Measurement) -> None:
    """The same up to rounding."""
    assert one.verdicts == other.verdicts
    for name in ("nll", "kl_divergence"):
        assert list(getattr(one, name)) == pytest.approx(list(getattr(other, name)), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    "overrides", [{}, {"generated_tokens": 2}, {"prompt_positions": "all"}, {"layers": (1, 2)}], ids=str
)
def test_a_measurement_is_what_is_measured_by_hand(
    overrides: dict[str, Any],
    run: RunContext,
    model: ChatModel,
    sets: dict[str, list[Prompt]],
    neurons: NeuronSet,
) -> None:
    made = intervention(neurons, **overrides)
    measurement = InterventionRunner.open(run, sets).measurement("harmful", made)
    options: dict[str, Any] = {"prompt_positions": 3} | overrides
    for number, prompt in enumerate(sets["harmful"]):
        text = model.render(prompt.text)
        own = dict(generate(model, [text], max_new_tokens=TOKENS))[0].text

        def changed(options: dict[str, Any] = options) -> Any:
            return calibrate(model, neurons, toward="conformity", alpha=20, **options)

        with changed():
            answer = dict(generate(model, [text], max_new_tokens=TOKENS))[0].text
        (how,) = nll(read_answers(model, [text], [answer], TOKENS))
        # With a cached prefix: it ends before every position that these interventions change.
        kept = PrefixCache.read(model, [[text]] if overrides.get("prompt_positions") != "all" else [], 3, 1)
        (moved,) = kl_divergence(
            model,
            [text],
            [own],
            changed,
            intervention_module.KL_TOKENS,
            functools.partial(kept.cache, [text]),
        )
        assert measurement.nll[number] == pytest.approx(how, rel=1e-3)
        assert measurement.kl_divergence[number] == pytest.approx(moved, rel=1e-3, abs=1e-5)
        broken = how is not None and how > intervention_module.NLL_LIMIT
        assert measurement.verdicts[number] == ("unscored" if broken else by_hash(answer))


def test_without_an_intervention_nothing_is_moved(run: RunContext, sets: dict[str, list[Prompt]]) -> None:
    assert set(InterventionRunner.open(run, sets).measurement("benign", None).kl_divergence) == {0.0}


def test_what_was_measured_is_not_measured_again(
    run: RunContext, model: ChatModel, sets: dict[str, list[Prompt]], neurons: NeuronSet, tmp_path: Path
) -> None:
    first = InterventionRunner.open(run, sets)
    before = {name: (first.measurement(name, None), first.measurement(name, intervention(neurons))) for name in sets}
    contents = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for runner in (first, InterventionRunner.open(run, sets)):
        passes = Passes(model)
        for name in sets:
            assert (runner.measurement(name, None), runner.measurement(name, intervention(neurons))) == before[name]
        assert passes.count == 0
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == contents


def test_another_intervention_is_another_measurement(
    run: RunContext, model: ChatModel, sets: dict[str, list[Prompt]], neurons: NeuronSet
) -> None:
    runner = InterventionRunner.open(run, sets)
    made = [
        intervention(neurons),
        intervention(neurons, 3),
        intervention(neurons, prompt_positions=1),
        intervention(neurons.random_like(1)),
        Intervention("found", neurons, "rejection", 20, CalibrationConfig(prompt_positions=3)),
    ]
    distances = set()
    for one in made:
        passes = Passes(model)
        distances.add(runner.measurement("benign", one).kl_divergence)
        assert passes.count > 0
    assert len(distances) == len(made)
    # The same intervention under another name is the same intervention.
    passes = Passes(model)
    renamed = Intervention("other", neurons, "conformity", 20, CalibrationConfig(prompt_positions=3))
    assert runner.measurement("benign", renamed) == runner.measurement("benign", made[0])
    assert passes.count == 0


def test_a_model_under_another_name_is_another_model(
    run: RunContext, model: ChatModel, sets: dict[str, list[Prompt]], tmp_path: Path
) -> None:
    plain = InterventionRunner.open(run, sets).measurement("benign", None)
    tuned = InterventionRunner.open(run, sets, run.engine.under("tuned"))
    passes = Passes(model)
    assert tuned.measurement("benign", None) == plain
    assert passes.count > 0
    assert len(lines_of(tmp_path / "responses.jsonl")) == 2 * len(sets["benign"])


@pytest.mark.parametrize("after", [0, 1, 3, 5])
@pytest.mark.parametrize("calibrated", [False, True], ids=["base", "calibrated"])
def test_a_killed_measurement_goes_on_to_the_same_end(
    after: int,
    calibrated: bool,
    run: RunContext,
    sets: dict[str, list[Prompt]],
    neurons: NeuronSet,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    made = intervention(neurons) if calibrated else None
    other = RunContext(RunFolder(tmp_path_factory.mktemp("whole")), run.settings, {}, Silence())
    other.__dict__["model"] = run.model
    whole = InterventionRunner.open(other, sets).measurement("harmful", made)
    left = after

    def killing(items: int) -> None:
        nonlocal left
        left -= items
        if left < 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        InterventionRunner.open(run, sets).measurement("harmful", made, killing)
    kept = lines_of(tmp_path / "responses.jsonl")
    assert len(kept) == after + 1
    assert InterventionRunner.open(run, sets).measurement("harmful", made) == whole
    answers = lines_of(tmp_path / "responses.jsonl")
    assert answers[: len(kept)] == kept
    assert len({line["key"] for line in answers}) == len(answers)
    assert sorted(line["key"] for line in answers) == sorted(line["key"] for line in lines_of(other.folder.responses))


def test_a_measurement_killed_between_answers_and_numbers_asks_nothing_again(
    run: RunContext, sets: dict[str, list[Prompt]], neurons: NeuronSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = InterventionRunner.open(run, sets).measurement("harmful", intervention(neurons))
    answers = (tmp_path / "responses.jsonl").read_bytes()
    numbers = (tmp_path / "measurements.jsonl").read_bytes()
    # A line that was cut off counts as not written.
    (tmp_path / "measurements.jsonl").write_bytes(numbers[: len(numbers) // 2])
    assert InterventionRunner.open(run, sets).measurement("harmful", intervention(neurons)) == whole
    assert (tmp_path / "responses.jsonl").read_bytes() == answers


def test_answers_with_a_high_nll_are_unscored(
    run: RunContext,
    sets: dict[str, list[Prompt]],
    neurons: NeuronSet,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    before = InterventionRunner.open(run, sets).measurement("harmful", intervention(neurons))
    limit = sorted(value for value in before.nll if value is not None)[len(before.nll) // 2]
    monkeypatch.setattr(intervention_module, "NLL_LIMIT", limit)
    after = InterventionRunner.open(run, sets).measurement("harmful", intervention(neurons))
    assert after.nll == before.nll
    answers = {line["user"]: line["text"] for line in lines_of(tmp_path / "responses.jsonl") if line["change"]}
    for prompt, verdict, how in zip(sets["harmful"], after.verdicts, after.nll, strict=True):
        assert how is not None
        assert verdict == ("unscored" if how > limit else by_hash(answers[prompt.text]))
    assert len({how > limit for how in after.nll if how is not None}) == 2
    assert sum(after.share(verdict) for verdict in ("refused", "complied", "unscored")) == pytest.approx(1)
    assert after.are("unscored") == [verdict == "unscored" for verdict in after.verdicts]


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"prompt_positions": "template"},
        {"prompt_positions": "all"},
        {"prompt_positions": 0, "generated_tokens": "all"},
    ],
    ids=str,
)
def test_kept_beginnings_change_nothing(
    overrides: dict[str, Any],
    run: RunContext,
    sets: dict[str, list[Prompt]],
    neurons: NeuronSet,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    other = RunContext(RunFolder(tmp_path_factory.mktemp("other")), run.settings, {}, Silence())
    other.__dict__["model"] = run.model
    with_kept = InterventionRunner.open(run, sets)
    assert any(cache is not None for cache in with_kept.prefixes.caches.values())
    without = replace(InterventionRunner.open(other, sets), prefixes=PrefixCache({}))
    for name in sets:
        near(
            with_kept.measurement(name, intervention(neurons, **overrides)),
            without.measurement(name, intervention(neurons, **overrides)),
        )


VERDICTS: tuple[Verdict, ...] = ("refused", "complied", "unscored")


def measured(verdicts: str) -> Measurement:
    """Of r(efused), c(omplied) and u(nscored)."""
    names: list[Verdict] = [verdict for letter in verdicts for verdict in VERDICTS if verdict[0] == letter]
    return Measurement(tuple(names), (0.5,) * len(names), (0.5,) * len(names))


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_of_all_prompts_and_add_up_to_one(seed: int) -> None:
    drawn = random.Random(seed)
    verdicts = "".join(drawn.choice("rcu") for _ in range(drawn.randint(1, 30)))
    found = measured(verdicts).described()
    assert found["n"] == len(verdicts)
    for name, letter in (("refused", "r"), ("answered", "c"), ("broken", "u")):
        assert found[name]["value"] == verdicts.count(letter) / len(verdicts)
    assert sum(found[name]["value"] for name in ("refused", "answered", "broken")) == pytest.approx(1)


def test_prompts_are_moved_that_were_something_else_before() -> None:
    before, after = measured("rrrcccuuu"), measured("rcurcurcu")
    assert moved(before, after, "complied") == [
        *(False, True, False),
        # Those that complied already are not moved.
        *(False, False, False),
        *(False, True, False),
    ]
    assert moved(before, before, "refused") == [False] * 9
    assert sum(moved(before, after, "refused")) == 2


def test_distances_and_surprise_are_described_apart() -> None:
    found = Measurement(("refused", "complied"), (1.0, 2.0), (None, 7.0)).described()
    assert found["nll"]["value"] == 1.5
    assert found["kl_divergence"]["value"] == 7
