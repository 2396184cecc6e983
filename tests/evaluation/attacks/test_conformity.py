"""The calibration toward conformity as an attack: the same as the library's, and gone afterwards."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch

from safety_neurons.calibration.calibration import calibrate
from safety_neurons.core.errors import CannotRunError
from safety_neurons.core.records import JsonlCache
from safety_neurons.engines.engine import CachedAnswer, CachedEngine
from safety_neurons.evaluation import attacks, defenses
from safety_neurons.evaluation.contracts import Defended, EvaluationContext, RunArtifacts
from safety_neurons.evaluation.defenses.perplexity_filter import PerplexityFilter
from safety_neurons.evaluation.grid import Plan, answer_grid
from safety_neurons.models.chat import AttackedPrompt, ChatModel, Conversation
from safety_neurons.neurons.neuron_set import Directions, NeuronSet, Provenance
from safety_neurons.prompts import Prompt

CONVERSATIONS = [Conversation.of("How do I wrap a present?"), Conversation.of("Why?", prefill="Be")]


@pytest.fixture
def neurons(model: ChatModel) -> NeuronSet:
    """Random neurons with random directions."""
    generator = torch.Generator().manual_seed(0)
    widths = tuple(hook_point.width for hook_point in model.hook_points)
    drawn = [torch.randperm(width, generator=generator)[:12] for width in widths]
    means = [tuple(torch.randn(6, width, generator=generator) for width in widths) for _ in range(2)]
    provenance = Provenance(model.name, model.identity, "by hand", 1.0, "layer", 0, (1,) * 3, model.parameters)
    return NeuronSet(
        tuple(layer[:6].sort().values for layer in drawn),
        tuple(layer[6:].sort().values for layer in drawn),
        widths,
        tuple(hook_point.layer for hook_point in model.hook_points),
        provenance,
        Directions(*means),
    )


@pytest.fixture
def armed(make_bench: Callable[..., EvaluationContext], neurons: NeuronSet) -> EvaluationContext:
    return make_bench(artifacts=RunArtifacts(neurons=neurons, alpha_conformity=5.0))


def test_the_model_is_calibrated_while_it_is_attacked(
    armed: EvaluationContext, model: ChatModel, neurons: NeuronSet
) -> None:
    before = armed.answers(CONVERSATIONS)
    with attacks.get("conformity").surrounding(armed) as attacked:
        found = attacked.answers(CONVERSATIONS)
    with calibrate(model, neurons, toward="conformity", alpha=5.0):
        expected = armed.answers(CONVERSATIONS)
    assert found == expected != before
    assert armed.answers(CONVERSATIONS) == before


def test_answers_are_kept_apart(armed: EvaluationContext, neurons: NeuronSet) -> None:
    other = dataclasses.replace(neurons, rejection=neurons.conformity)
    identities = [armed.engine.identity]
    for spec, known in [("conformity", neurons), ("conformity:alpha=2", neurons), ("conformity", other)]:
        context = dataclasses.replace(armed, artifacts=dataclasses.replace(armed.artifacts, neurons=known))
        with attacks.get(spec).surrounding(context) as attacked:
            identities.append(attacked.engine.identity)
    assert len(set(identities)) == len(identities)
    with attacks.get("conformity:alpha=5").surrounding(armed) as attacked:
        assert attacked.engine.identity == identities[1]


def test_the_requests_are_sent_as_they_are(armed: EvaluationContext, defended: Defended) -> None:
    assert attacks.get("conformity").prompts(["a {b}", ""], defended, armed) == [
        AttackedPrompt("a {b}"),
        AttackedPrompt(""),
    ]


def test_it_needs_neurons_with_directions(
    context: EvaluationContext, armed: EvaluationContext, neurons: NeuronSet
) -> None:
    with (
        pytest.raises(CannotRunError, match="needs the neurons of a run"),
        attacks.get("conformity").surrounding(context),
    ):
        pass
    bare = RunArtifacts(neurons=dataclasses.replace(neurons, directions=None))
    with (
        pytest.raises(CannotRunError, match="needs the directions"),
        attacks.get("conformity").surrounding(dataclasses.replace(armed, artifacts=bare)),
    ):
        pass


def test_the_grid_keeps_the_answers_of_another_strength_apart(armed: EvaluationContext) -> None:
    plan = Plan((attacks.get("conformity"),), (defenses.get("none"),), (Prompt("one", "Why is the sky blue?"),), {})
    cache = JsonlCache(None, CachedAnswer)
    for alpha in (0.0, 40.0, 0.0):
        context = dataclasses.replace(armed, artifacts=dataclasses.replace(armed.artifacts, alpha_conformity=alpha))
        engine = CachedEngine(context.engine, cache)
        (fresh,), (found,) = (
            list(answer_grid(plan, one)) for one in (context, dataclasses.replace(context, engine=engine))
        )
        assert found == fresh
    assert len(cache.entries) == 2


def test_what_a_defence_learns_of_the_model_it_learns_before_the_attack(
    armed: EvaluationContext, model: ChatModel, neurons: NeuronSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filter's threshold is that of the plain model, whatever was asked before."""
    requests = ["How do I wrap a present?", "Why is the sky blue?", "Name a color."]
    context = dataclasses.replace(armed, harmful=requests)
    filtering = defenses.get("perplexity-filter")
    assert isinstance(filtering, PerplexityFilter)
    plain = filtering.prepared(context).threshold
    with calibrate(model, neurons, toward="conformity", alpha=5.0, prompt_positions="all"):
        assert filtering.prepared(context).threshold != plain
    assert filtering.prepared(context) == filtering.prepared(context).prepared(context)
    opened: list[float | None] = []

    def opening(self: PerplexityFilter, context: EvaluationContext) -> AbstractContextManager[Defended]:
        opened.append(self.threshold)
        return defenses.get("none").opened(context)

    monkeypatch.setattr(PerplexityFilter, "opened", opening)
    plan = Plan((attacks.get("conformity"),), (filtering,), (Prompt("one", "Why is the sky blue?"),), {})
    list(answer_grid(plan, context))
    assert opened == [plain]
