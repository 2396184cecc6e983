"""Defences that change the model: what they answer, where their answers are kept, and that nothing is left behind."""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safety_neurons import defenses
from safety_neurons.attacks.attack import AttackedPrompt
from safety_neurons.calibrate.detector import Detector
from safety_neurons.calibrate.guard import Guard, guard
from safety_neurons.calibrate.knobs import Knobs
from safety_neurons.defenses.defense import Response
from safety_neurons.engines.bench import Artefacts, Bench
from safety_neurons.engines.in_process import InProcess
from safety_neurons.engines.kept import Kept
from safety_neurons.errors import CannotRun, SafetyNeuronsError
from safety_neurons.evaluate.utility import read_untouched, utility
from safety_neurons.find.neuron_set import Directions, NeuronSet, Provenance
from safety_neurons.kept_lines import KeptLines
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import complete
from safety_neurons.tune import lora
from safety_neurons.tune.corpus import Corpus, Pair

pytestmark = pytest.mark.filterwarnings("ignore")
PROMPTS = [
    AttackedPrompt("ab"),
    AttackedPrompt("Hello there."),
    AttackedPrompt("How do I wrap a present?", "Sure"),
    AttackedPrompt("A longer text, padded."),
]
LORA = "lora:learning-rate=0.02"
SAFEDECODING = "safedecoding:learning-rate=0.01,pairs=6,rank=4"
NAMES = ("guard", LORA, SAFEDECODING)


def corpus() -> Corpus:
    kinds: Any = ("refusal", "refusal", "benign")
    return Corpus(tuple(Pair(kinds[n % 3], f"p{n}", "Say " + "soup " * (n % 4), "", f"No {n}.") for n in range(12)))


def fitted_guard(model: ChatModel) -> Guard:
    """Random neurons and directions; the threshold is between the scores of the prompts."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randperm(site.width, generator=generator)[:8].sort().values for site in model.sites]
    widths = tuple(site.width for site in model.sites)
    means = [tuple(torch.randn(4, width, generator=generator) for width in widths) for _ in range(2)]
    provenance = Provenance(model.name, model.identity, "by hand", 1.0, "layer", 0, (1,) * len(widths), 1)
    rejection, conformity = (tuple(one[first::2] for one in drawn) for first in (0, 1))
    layers = tuple(site.layer for site in model.sites)
    neurons = NeuronSet(rejection, conformity, widths, layers, provenance, Directions(*means))
    detector = Detector(torch.randn(16, generator=generator), 0.1, torch.zeros(19), 1.0, 1e-2)
    found = Guard(neurons, detector, 1, 0.1, 8.0, Knobs(generated_tokens="all", prompt_positions=3))
    middle = float(found.scores(model, [prompt.user for prompt in PROMPTS]).median())
    # Of nineteen ordinary prompts one is far away: the rate 0.05 flags nothing that 0.1 does.
    ordinary = torch.tensor([middle] * 18 + [1e6])
    return dataclasses.replace(found, detector=dataclasses.replace(detector, ordinary=ordinary))


@pytest.fixture
def make_bench(model: ChatModel, tmp_path: Path) -> Callable[..., Bench]:
    def make(kept: bool = False, **changes: Any) -> Bench:
        engine: Any = InProcess(model, batch_size=2)
        if kept:
            engine = Kept(engine, KeptLines.read(tmp_path / "answers.jsonl"))
        made = Artefacts(guard=fitted_guard(model), corpus=corpus())
        return dataclasses.replace(Bench(engine, 8, made=made, folder=tmp_path / "defences"), **changes)

    return make


def answered(bench: Bench, name: str, prompts: list[AttackedPrompt] = PROMPTS) -> list[Response]:
    with defenses.get(name).opened(bench) as defended:
        return defended.respond(prompts)


def weights(model: ChatModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.model.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_changed_while_it_is_defended_and_as_before_afterwards(
    make_bench: Callable[..., Bench], model: ChatModel, name: str
) -> None:
    bench = make_bench()
    before, hooks = weights(model), [len(module._forward_pre_hooks) for module in model.model.modules()]
    alone = answered(bench, "none")
    defended = answered(bench, name)
    assert defended != alone
    assert [found.text.startswith("Sure") for found in defended] == [bool(prompt.prefill) for prompt in PROMPTS]
    after = model.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert [len(module._forward_pre_hooks) for module in model.model.modules()] == hooks
    assert answered(bench, "none") == alone
    # Who shares a batch with whom makes no difference.
    assert [answered(bench, name, [prompt])[0] for prompt in PROMPTS] == defended


@pytest.mark.parametrize("name", [LORA, SAFEDECODING])
def test_what_is_trained_beforehand_is_not_trained_again(
    make_bench: Callable[..., Bench], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    defense = defenses.get(name).prepared(make_bench())
    monkeypatch.setattr(importlib.import_module("safety_neurons.tune.lora"), "trained", None)
    with defense.opened(make_bench()) as defended:
        assert len(defended.respond(PROMPTS)) == len(PROMPTS)


@pytest.mark.parametrize("name", NAMES)
def test_kept_answers_are_kept_apart_and_found_again(
    make_bench: Callable[..., Bench], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = answered(make_bench(), name)
    alone = answered(make_bench(kept=True), "none")
    assert answered(make_bench(kept=True), name) == fresh
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert len(lines) == 2 * len(PROMPTS)
    monkeypatch.setattr(InProcess, "answer", lambda *_, **__: pytest.fail("asked again"))
    monkeypatch.setattr("safety_neurons.defenses.safedecoding.complete_safely", lambda *_: pytest.fail("asked again"))
    monkeypatch.setattr(lora, "trained", lambda *_, **__: pytest.fail("trained again"))
    assert answered(make_bench(kept=True), name) == fresh
    assert answered(make_bench(kept=True), "none") == alone


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("guard", "guard:alpha=1"),
        ("guard", "guard:false-positive-rate=0.05"),
        (LORA, "lora:learning-rate=0.02,rank=4"),
        (LORA, "lora:learning-rate=0.02,alpha=1"),
        (LORA, "lora:learning-rate=0.02,epochs=1"),
        *(("safedecoding:pairs=2", f"safedecoding:pairs=2,{option}") for option in ("alpha=1", "first=3", "common=7")),
        ("safedecoding:pairs=2", "safedecoding:pairs=3"),
    ],
)
def test_every_option_names_another_model(make_bench: Callable[..., Bench], one: str, other: str) -> None:
    identities = []
    for name in (one, one, other):
        with defenses.get(name).opened(make_bench()) as defended:
            identities.append(defended.engine.identity)
    assert identities[0] == identities[1] != identities[2]


def test_the_guard_is_the_fitted_one_with_the_given_options(make_bench: Callable[..., Bench], model: ChatModel) -> None:
    bench, fitted = make_bench(), fitted_guard(model)
    flagged = fitted.scores(model, [prompt.user for prompt in PROMPTS]) > fitted.threshold
    assert 0 < int(flagged.sum()) < len(PROMPTS)
    alone, guarded = answered(bench, "none"), answered(bench, "guard")
    # What is not flagged is answered with the same bits. (A prefill is part of what the guard reads.)
    for number, prompt in enumerate(PROMPTS):
        assert prompt.prefill or flagged[number] or guarded[number] == alone[number]
    for options in ({"alpha": 2.0}, {"false_positive_rate": 0.05}):
        given = ",".join(f"{name}={value}" for name, value in options.items())
        with guard(model, dataclasses.replace(fitted, **options)):  # type: ignore[arg-type]
            expected = answered(bench, "none")
        assert answered(bench, f"guard:{given}") == expected
    with pytest.raises(SafetyNeuronsError, match="needs at least 99"):
        answered(bench, "guard:false-positive-rate=0.01")


def test_safedecoding_without_steering_is_the_model_and_shows_it(
    make_bench: Callable[..., Bench], model: ChatModel
) -> None:
    bench = make_bench()
    alone = answered(bench, "none")
    assert answered(bench, f"{SAFEDECODING},first=0") == alone
    text = [model.render("Hello there.")]
    usual = complete(model, text, 8)
    with defenses.get(SAFEDECODING).opened(bench) as defended:
        assert defended.engine.model is model
        # Before and after it answers, an attack meets the model without its expert.
        assert complete(model, text, 8) == usual
        defended.respond(PROMPTS)
        assert complete(model, text, 8) == usual


def test_the_expert_learns_refusals_alone(make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[Corpus] = []

    def noted(_folder: Any, _model: Any, corpus: Corpus, training: Any, **_: Any) -> Any:
        learnt.append(corpus)
        raise KeyboardInterrupt

    monkeypatch.setattr("safety_neurons.defenses.safedecoding.kept_lora", noted)
    for name in ("safedecoding:pairs=5", "safedecoding:pairs=5", "safedecoding"):
        with pytest.raises(KeyboardInterrupt):
            answered(make_bench(), name)
    assert learnt[0] == learnt[1]
    assert [one.counts() for one in learnt] == [{"refusal": 5}, {"refusal": 5}, {"refusal": 8}]


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        ("guard", "guard", "needs the guard"),
        ("lora", "corpus", "needs the corpus"),
        ("safedecoding", "corpus", "needs the corpus"),
    ],
)
def test_what_a_defence_lacks_is_said(make_bench: Callable[..., Bench], name: str, missing: str, message: str) -> None:
    bench = make_bench()
    lacking: dict[str, Any] = {missing: None}
    made = dataclasses.replace(bench.made, **lacking)
    with pytest.raises(CannotRun, match=message):
        answered(dataclasses.replace(bench, made=made), name)


def test_an_expert_without_refusals_cannot_be_trained(make_bench: Callable[..., Bench]) -> None:
    nothing = Corpus(tuple(pair for pair in corpus().pairs if pair.kind != "refusal"))
    with pytest.raises(CannotRun, match="there are none in the run's corpus"):
        answered(make_bench(made=Artefacts(corpus=nothing)), "safedecoding")


def test_the_models_own_probabilities_say_nothing_of_another_decoding(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    untouched = read_untouched(bench, ["Why is the sky blue?"])
    with defenses.get(SAFEDECODING).opened(bench) as defended:
        found = utility(bench, defended, untouched.prompts, untouched)
    assert (found.divergence, found.perplexity) == (None, None)
    assert "decodes in its own way" in str(found.no_divergence)
