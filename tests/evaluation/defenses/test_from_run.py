"""Defenses that change the model: what they answer, where their answers are kept, and that nothing is left behind."""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safety_neurons.calibration.config import CalibrationConfig
from safety_neurons.calibration.detector import Detector
from safety_neurons.calibration.guard import Guard, guard
from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.core.records import JsonlCache
from safety_neurons.engines.engine import CachedAnswer, CachedEngine, InProcess
from safety_neurons.evaluation import defenses
from safety_neurons.evaluation.contracts import EvaluationContext, Response, RunArtifacts
from safety_neurons.evaluation.utility.ordinary import read_base_answers, utility
from safety_neurons.models.chat import AttackedPrompt, ChatModel
from safety_neurons.models.generate import complete
from safety_neurons.neurons.neuron_set import Directions, NeuronSet, Provenance
from safety_neurons.tuning import lora
from safety_neurons.tuning.corpus import Corpus, Pair

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
    drawn = [
        torch.randperm(hook_point.width, generator=generator)[:8].sort().values for hook_point in model.hook_points
    ]
    widths = tuple(hook_point.width for hook_point in model.hook_points)
    means = [tuple(torch.randn(4, width, generator=generator) for width in widths) for _ in range(2)]
    provenance = Provenance(model.name, model.identity, "by hand", 1.0, "layer", 0, (1,) * len(widths), 1)
    rejection, conformity = (tuple(one[first::2] for one in drawn) for first in (0, 1))
    layers = tuple(hook_point.layer for hook_point in model.hook_points)
    neurons = NeuronSet(rejection, conformity, widths, layers, provenance, Directions(*means))
    detector = Detector(torch.randn(16, generator=generator), 0.1, torch.zeros(19), 1.0, 1e-2)
    found = Guard(neurons, detector, 1, 0.1, 8.0, CalibrationConfig(generated_tokens="all", prompt_positions=3))
    middle = float(found.scores(model, [prompt.user for prompt in PROMPTS]).median())
    # Of nineteen ordinary prompts one is far away: the rate 0.05 flags nothing that 0.1 does.
    ordinary = torch.tensor([middle] * 18 + [1e6])
    return dataclasses.replace(found, detector=dataclasses.replace(detector, ordinary=ordinary))


@pytest.fixture
def make_bench(model: ChatModel, tmp_path: Path) -> Callable[..., EvaluationContext]:
    def make(kept: bool = False, **changes: Any) -> EvaluationContext:
        engine: Any = InProcess(model, batch_size=2)
        if kept:
            engine = CachedEngine(engine, JsonlCache.read(tmp_path / "answers.jsonl", CachedAnswer))
        made = RunArtifacts(guard=fitted_guard(model), corpus=corpus())
        return dataclasses.replace(
            EvaluationContext(engine, 8, artifacts=made, folder=tmp_path / "defenses"), **changes
        )

    return make


def answered(context: EvaluationContext, name: str, prompts: list[AttackedPrompt] = PROMPTS) -> list[Response]:
    with defenses.get(name).opened(context) as defended:
        return defended.respond(prompts)


def weights(model: ChatModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.model.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_changed_while_it_is_defended_and_as_before_afterwards(
    make_bench: Callable[..., EvaluationContext], model: ChatModel, name: str
) -> None:
    context = make_bench()
    before, hooks = weights(model), [len(module._forward_pre_hooks) for module in model.model.modules()]
    alone = answered(context, "none")
    defended = answered(context, name)
    assert defended != alone
    assert [found.text.startswith("Sure") for found in defended] == [bool(prompt.prefill) for prompt in PROMPTS]
    after = model.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert [len(module._forward_pre_hooks) for module in model.model.modules()] == hooks
    assert answered(context, "none") == alone
    # Who shares a batch with whom makes no difference.
    assert [answered(context, name, [prompt])[0] for prompt in PROMPTS] == defended


@pytest.mark.parametrize("name", [LORA, SAFEDECODING])
def test_what_is_trained_beforehand_is_not_trained_again(
    make_bench: Callable[..., EvaluationContext], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    defense = defenses.get(name).prepared(make_bench())
    monkeypatch.setattr(importlib.import_module("safety_neurons.tuning.lora"), "trained", None)
    with defense.opened(make_bench()) as defended:
        assert len(defended.respond(PROMPTS)) == len(PROMPTS)


@pytest.mark.parametrize("name", NAMES)
def test_kept_answers_are_kept_apart_and_found_again(
    make_bench: Callable[..., EvaluationContext], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = answered(make_bench(), name)
    alone = answered(make_bench(kept=True), "none")
    assert answered(make_bench(kept=True), name) == fresh
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert len(lines) == 2 * len(PROMPTS)
    monkeypatch.setattr(InProcess, "answer", lambda *_, **__: pytest.fail("asked again"))
    monkeypatch.setattr(
        "safety_neurons.evaluation.defenses.safedecoding.complete_safely", lambda *_: pytest.fail("asked again")
    )
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
def test_every_option_names_another_model(make_bench: Callable[..., EvaluationContext], one: str, other: str) -> None:
    identities = []
    for name in (one, one, other):
        with defenses.get(name).opened(make_bench()) as defended:
            identities.append(defended.engine.identity)
    assert identities[0] == identities[1] != identities[2]


def test_the_guard_is_the_fitted_one_with_the_given_options(
    make_bench: Callable[..., EvaluationContext], model: ChatModel
) -> None:
    context, fitted = make_bench(), fitted_guard(model)
    flagged = fitted.scores(model, [prompt.user for prompt in PROMPTS]) > fitted.threshold
    assert 0 < int(flagged.sum()) < len(PROMPTS)
    alone, guarded = answered(context, "none"), answered(context, "guard")
    # What is not flagged is answered with the same bits. (A prefill is part of what the guard reads.)
    for number, prompt in enumerate(PROMPTS):
        assert prompt.prefill or flagged[number] or guarded[number] == alone[number]
    for options in ({"alpha": 2.0}, {"false_positive_rate": 0.05}):
        given = ",".join(f"{name}={value}" for name, value in options.items())
        with guard(model, dataclasses.replace(fitted, **options)):  # type: ignore[arg-type]
            expected = answered(context, "none")
        assert answered(context, f"guard:{given}") == expected
    with pytest.raises(SafetyNeuronsError, match="needs at least 99"):
        answered(context, "guard:false-positive-rate=0.01")


def test_safedecoding_without_steering_is_the_model_and_shows_it(
    make_bench: Callable[..., EvaluationContext], model: ChatModel
) -> None:
    context = make_bench()
    alone = answered(context, "none")
    assert answered(context, f"{SAFEDECODING},first=0") == alone
    text = [model.render("Hello there.")]
    usual = complete(model, text, 8)
    with defenses.get(SAFEDECODING).opened(context) as defended:
        assert defended.engine.model is model
        # Before and after it answers, an attack meets the model without its expert.
        assert complete(model, text, 8) == usual
        defended.respond(PROMPTS)
        assert complete(model, text, 8) == usual


def test_the_expert_learns_refusals_alone(
    make_bench: Callable[..., EvaluationContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[Corpus] = []

    def noted(_folder: Any, _model: Any, corpus: Corpus, training: Any, **_: Any) -> Any:
        learned.append(corpus)
        raise KeyboardInterrupt

    monkeypatch.setattr("safety_neurons.evaluation.defenses.safedecoding.cached_lora", noted)
    for name in ("safedecoding:pairs=5", "safedecoding:pairs=5", "safedecoding"):
        with pytest.raises(KeyboardInterrupt):
            answered(make_bench(), name)
    assert learned[0] == learned[1]
    assert [one.counts() for one in learned] == [{"refusal": 5}, {"refusal": 5}, {"refusal": 8}]


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        ("guard", "guard", "needs the guard"),
        ("lora", "corpus", "needs the corpus"),
        ("safedecoding", "corpus", "needs the corpus"),
    ],
)
def test_a_missing_artifact_is_named(
    make_bench: Callable[..., EvaluationContext], name: str, missing: str, message: str
) -> None:
    context = make_bench()
    lacking: dict[str, Any] = {missing: None}
    made = dataclasses.replace(context.artifacts, **lacking)
    with pytest.raises(CannotRunError, match=message):
        answered(dataclasses.replace(context, artifacts=made), name)


def test_an_expert_without_refusals_cannot_be_trained(make_bench: Callable[..., EvaluationContext]) -> None:
    nothing = Corpus(tuple(pair for pair in corpus().pairs if pair.kind != "refusal"))
    with pytest.raises(CannotRunError, match="there are none in the run's corpus"):
        answered(make_bench(artifacts=RunArtifacts(corpus=nothing)), "safedecoding")


def test_the_models_own_probabilities_say_nothing_of_another_decoding(
    make_bench: Callable[..., EvaluationContext],
) -> None:
    context = make_bench()
    base = read_base_answers(context, ["Why is the sky blue?"])
    with defenses.get(SAFEDECODING).opened(context) as defended:
        found = utility(context, defended, base.prompts, base)
    assert (found.kl_divergence, found.perplexity) == (None, None)
    assert "changes decoding" in str(found.no_kl_divergence)
