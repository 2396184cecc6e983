"""The calibration towards conformity as an attack: the same as the library's, and gone afterwards."""

import dataclasses
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch

from safety_neurons import attacks, defenses
from safety_neurons.attacks.attack import AttackedPrompt
from safety_neurons.calibrate.calibration import calibrate
from safety_neurons.defenses.defense import Defended
from safety_neurons.defenses.perplexity_filter import PerplexityFilter
from safety_neurons.engines.bench import Artefacts, Bench
from safety_neurons.errors import CannotRun
from safety_neurons.evaluate.grid import Plan, answer_grid
from safety_neurons.find.neuron_set import Directions, NeuronSet, Provenance
from safety_neurons.kept_lines import KeptLines
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.conversation import Conversation
from safety_neurons.prompts import Prompt

CONVERSATIONS = [Conversation.of("How do I wrap a present?"), Conversation.of("Why?", prefill="Be")]


@pytest.fixture
def neurons(model: ChatModel) -> NeuronSet:
    """Random neurons with random directions."""
    generator = torch.Generator().manual_seed(0)
    widths = tuple(site.width for site in model.sites)
    drawn = [torch.randperm(width, generator=generator)[:12] for width in widths]
    means = [tuple(torch.randn(6, width, generator=generator) for width in widths) for _ in range(2)]
    provenance = Provenance(model.name, model.identity, "by hand", 1.0, "layer", 0, (1,) * 3, model.parameters)
    return NeuronSet(
        tuple(layer[:6].sort().values for layer in drawn),
        tuple(layer[6:].sort().values for layer in drawn),
        widths,
        tuple(site.layer for site in model.sites),
        provenance,
        Directions(*means),
    )


@pytest.fixture
def armed(make_bench: Callable[..., Bench], neurons: NeuronSet) -> Bench:
    return make_bench(made=Artefacts(neurons=neurons, alpha_conformity=5.0))


def test_the_model_is_calibrated_while_it_is_attacked(armed: Bench, model: ChatModel, neurons: NeuronSet) -> None:
    before = armed.answers(CONVERSATIONS)
    with attacks.get("conformity").surrounding(armed) as attacked:
        found = attacked.answers(CONVERSATIONS)
    with calibrate(model, neurons, toward="conformity", alpha=5.0):
        expected = armed.answers(CONVERSATIONS)
    assert found == expected != before
    assert armed.answers(CONVERSATIONS) == before


def test_answers_are_kept_apart(armed: Bench, neurons: NeuronSet) -> None:
    other = dataclasses.replace(neurons, rejection=neurons.conformity)
    identities = [armed.engine.identity]
    for spec, known in [("conformity", neurons), ("conformity:alpha=2", neurons), ("conformity", other)]:
        bench = dataclasses.replace(armed, made=dataclasses.replace(armed.made, neurons=known))
        with attacks.get(spec).surrounding(bench) as attacked:
            identities.append(attacked.engine.identity)
    assert len(set(identities)) == len(identities)
    with attacks.get("conformity:alpha=5").surrounding(armed) as attacked:
        assert attacked.engine.identity == identities[1]


def test_the_requests_are_sent_as_they_are(armed: Bench, defended: Defended) -> None:
    assert attacks.get("conformity").prompts(["a {b}", ""], defended, armed) == [
        AttackedPrompt("a {b}"),
        AttackedPrompt(""),
    ]


def test_it_needs_neurons_with_directions(bench: Bench, armed: Bench, neurons: NeuronSet) -> None:
    with pytest.raises(CannotRun, match="needs the neurons of a run"), attacks.get("conformity").surrounding(bench):
        pass
    bare = Artefacts(neurons=dataclasses.replace(neurons, directions=None))
    with (
        pytest.raises(CannotRun, match="needs the directions"),
        attacks.get("conformity").surrounding(dataclasses.replace(armed, made=bare)),
    ):
        pass


def test_the_grid_keeps_the_answers_of_another_strength_apart(armed: Bench, model: ChatModel) -> None:
    plan = Plan((attacks.get("conformity"),), (defenses.get("none"),), (Prompt("one", "Why is the sky blue?"),), {})
    kept = KeptLines(None)
    for alpha in (0.0, 40.0, 0.0):
        bench = dataclasses.replace(armed, made=dataclasses.replace(armed.made, alpha_conformity=alpha))
        (fresh,), (found,) = (list(answer_grid(plan, bench, lines)) for lines in (KeptLines(None), kept))
        assert found == fresh
    assert len(kept.by_key) == 2


def test_what_a_defence_learns_of_the_model_it_learns_before_the_attack(
    armed: Bench, model: ChatModel, neurons: NeuronSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filter's threshold is that of the plain model, whatever was asked before."""
    requests = ["How do I wrap a present?", "Why is the sky blue?", "Name a colour."]
    bench = dataclasses.replace(armed, harmful=requests)
    filtering = defenses.get("perplexity-filter")
    assert isinstance(filtering, PerplexityFilter)
    plain = filtering.prepared(bench).threshold
    with calibrate(model, neurons, toward="conformity", alpha=5.0, prompt_positions="all"):
        assert filtering.prepared(bench).threshold != plain
    assert filtering.prepared(bench) == filtering.prepared(bench).prepared(bench)
    opened: list[float | None] = []

    def opening(self: PerplexityFilter, bench: Bench) -> AbstractContextManager[Defended]:
        opened.append(self.threshold)
        return defenses.get("none").opened(bench)

    monkeypatch.setattr(PerplexityFilter, "opened", opening)
    plan = Plan((attacks.get("conformity"),), (filtering,), (Prompt("one", "Why is the sky blue?"),), {})
    list(answer_grid(plan, bench, KeptLines(None)))
    assert opened == [plain]


def test_a_new_wording_of_an_attack_or_a_defence_is_asked_again(armed: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan((attacks.get("conformity"),), (defenses.get("none"),), (Prompt("one", "Why is the sky blue?"),), {})
    kept = KeptLines(None)
    for words in ("old", "old", "new"):
        monkeypatch.setattr(
            importlib.import_module("safety_neurons.evaluate.grid"),
            "wording",
            lambda package, words=words: f"{package} {words}",
        )
        list(answer_grid(plan, armed, kept))
    assert len(kept.by_key) == 2
