"""`find`: the safety knowledge neurons of a model, from harmful and benign prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.find import scores
from safety_neurons.find.neuron_set import Directions, NeuronSet, Provenance, sorted_indices
from safety_neurons.find.read import BothSides, check_reading, directions, gather, measure_both, read_both, write_norms
from safety_neurons.find.scores import Layers, Score, Tokens
from safety_neurons.find.select import check_budget, select
from safety_neurons.find.significance import significant
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import BATCH_SIZE
from safety_neurons.progress import Advance, ignore


@dataclass(frozen=True)
class ScoredNeurons:
    """A score of every neuron on both sides, float32 [neurons] per site, from which sets of any size are taken.

    `significant` is how many neurons of each site differ between the sides, for scores that test it.
    """

    model: ChatModel
    score: Score
    tokens: Tokens
    seed: int
    harmful: Layers
    benign: Layers
    directions: Directions
    significant: tuple[int, ...] | None = None

    def top(self, percent: float, scope: str | None = None, selection: str = "difference") -> NeuronSet:
        """The neurons that a budget pays for; the scope is the score's own when left out."""
        model, sites = self.model, self.model.sites
        layers = tuple(site.layer for site in sites)
        scope = scope or self.score.scope
        rejection, conformity = select(
            self.harmful, self.benign, percent, scope, self.score.contrastive, layers, selection
        )
        provenance = Provenance(
            model=model.name,
            identity=model.identity,
            score=self.score.name,
            percent=percent,
            scope=scope,
            seed=self.seed,
            parameters_per_neuron=tuple(site.parameters_per_neuron for site in sites),
            parameters_total=model.parameters,
            coverage=str(model.coverage),
            tokens=self.tokens,
            selection=selection,
            significant=self.significant,
        )
        widths = tuple(site.width for site in sites)
        return NeuronSet(
            sorted_indices(rejection), sorted_indices(conformity), widths, layers, provenance, self.directions
        )


def score_neurons(
    model: ChatModel,
    harmful: Sequence[str],
    benign: Sequence[str],
    *,
    score: str = "write-contrast",
    tokens: Tokens | None = None,
    last_tokens: int = 1,
    positions: int = 5,
    other: ChatModel | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    response_tokens: int = 32,
    advance: Advance = ignore,
) -> ScoredNeurons:
    """Score every neuron of the model; the arguments are those of `find`."""
    chosen = scores.get(score)
    counted = tokens or chosen.tokens
    if not harmful or not benign:
        raise SafetyNeuronsError("Finding needs harmful and benign prompts: one of the two sets is empty.")
    check_reading(model, chosen, counted, last_tokens, positions, other)
    sides = read_both(
        model,
        harmful,
        benign,
        write_norms(model),
        tokens=counted,
        last_tokens=last_tokens,
        positions=positions,
        own_answers=chosen.own_answers,
        response_tokens=response_tokens,
        batch_size=batch_size,
        other=other,
        advance=advance,
    )
    return compute_score([sides], [measure_both(sides, chosen)], chosen, counted, positions, seed)


def compute_score(
    parts: Sequence[BothSides],
    measured: Sequence[tuple[Layers, Layers] | None],
    score: Score,
    tokens: Tokens,
    positions: int,
    seed: int,
) -> ScoredNeurons:
    """Score every neuron from prompts that were read already, in one or several parts."""
    evidence = gather(parts, measured, score, seed)
    on_harmful, on_benign = score.compute(evidence)
    reading = parts[0].harmful.reading
    counts: tuple[int, ...] | None = None
    # Only one token a prompt is independent of the others, as the test wants it.
    if score.tested and reading.tail == 1:
        counts = tuple(int(site.sum()) for site in significant(evidence.harmful, evidence.benign))
    where = directions(parts, positions)
    return ScoredNeurons(reading.model, score, tokens, seed, on_harmful, on_benign, where, counts)


def find(
    model: ChatModel,
    harmful: Sequence[str],
    benign: Sequence[str],
    *,
    score: str = "write-contrast",
    percent: float = 0.5,
    scope: str | None = None,
    selection: str = "difference",
    tokens: Tokens | None = None,
    last_tokens: int = 1,
    positions: int = 5,
    other: ChatModel | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    response_tokens: int = 32,
    advance: Advance = ignore,
) -> NeuronSet:
    """Find the neurons that set harmful prompts apart from benign ones.

    In a script that torchrun started, `torch.distributed.init_process_group()` before it makes the processes share
    the work; each of them calls `find` with a model of its own, and all get the same neurons.

    Args:
        harmful, benign: requests, as a user would type them.
        score: the ranking's name (`safety_neurons.find.scores.names()`).
        percent: the budget, in percent of the neurons of a layer or of the model.
        scope: "layer" or "model"; the score's own default when left out.
        selection: "difference" takes the top of harmful minus the top of benign prompts and the reverse (scores that
            compare the sides themselves take one top over both); "none" takes the top of harmful prompts alone.
        tokens: whose activations count: the "last" of the prompt, the whole "prompt", or the "response"; the score's
            own habit when left out.
        last_tokens: how many tokens at the prompt's end the "last" are.
        positions: for how many positions at the prompt's end the directions for calibration are kept.
        other: a second checkpoint of the model, for scores that compare two.
        response_tokens: the longest response, where responses count.

    Raises:
        SafetyNeuronsError: a set is empty, the score is unknown, an option does not fit it, or the model cannot be
            read.
    """
    check_budget(percent, scope or scores.get(score).scope, selection)
    scored = score_neurons(
        model,
        harmful,
        benign,
        score=score,
        tokens=tokens,
        last_tokens=last_tokens,
        positions=positions,
        other=other,
        seed=seed,
        batch_size=batch_size,
        response_tokens=response_tokens,
        advance=advance,
    )
    return scored.top(percent, scope, selection)
