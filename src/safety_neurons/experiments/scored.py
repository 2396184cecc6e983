"""All scores of all neurons, on all training prompts and on random halves: computed once, kept in one file each.

The prompts are read in parts whose sums add up, so that a half is the sum of its parts. From the scores come neuron
sets of equal size, and the overlap of sets and rankings.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy
import torch
from pydantic import Field
from scipy.stats import spearmanr

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import exists, fingerprint
from safety_neurons.core.progress import Listener
from safety_neurons.core.records import Record
from safety_neurons.core.tensors import StoredTensors, write_tensors
from safety_neurons.experiments.cost import Cost, costing
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons import scores
from safety_neurons.neurons.find import ScoredNeurons, compute_score
from safety_neurons.neurons.neuron_set import Directions, NeuronSet, numbered
from safety_neurons.neurons.read import BothSides, check_reading, measure_both, passes, read_both, write_norms
from safety_neurons.neurons.scores import Score, WriteNorms
from safety_neurons.settings import Settings

PARTS = 10
RESPONSE_TOKENS = 32
# `of_size` tries cuts of each side's ranking up to half the neurons, in steps of this factor.
STEP = 1.1
WIDEST = 50.0


@dataclass(frozen=True)
class ResampledScore:
    """A score on all training prompts and on random halves of them, and the cost of the former."""

    whole: ScoredNeurons
    halves: tuple[ScoredNeurons, ...]
    cost: Cost


class ScoreRecord(Record):
    """What a file of scores says of them: what they depend on, what they cost, and the tested neurons."""

    key: str
    seconds: Annotated[float, Field(ge=0)]
    peak: Annotated[int, Field(ge=0)]
    significant: tuple[Annotated[int, Field(ge=0)], ...] | None


@dataclass(frozen=True)
class TrainingPrompts:
    """The prompts to compute scores from, the settings, and the number of random halves."""

    harmful: tuple[str, ...]
    benign: tuple[str, ...]
    settings: Settings
    seeds: int

    def parts(self) -> list[tuple[list[str], list[str]]]:
        """Harmful and benign prompts in random parts, whose sizes differ by at most one prompt."""
        count = min(PARTS, len(self.harmful), len(self.benign))
        if count < 2:
            raise SafetyNeuronsError(
                "Comparing scores needs at least two training prompts on each side. Use larger sets."
            )
        sides = []
        for number, prompts in enumerate((self.harmful, self.benign)):
            mixed = random.Random(f"{self.settings.seed} {number}").sample(prompts, len(prompts))
            sides.append([mixed[part::count] for part in range(count)])
        return list(zip(*sides, strict=True))

    def halves(self, parts: int) -> list[list[int]]:
        """The parts of each random half."""
        return [
            sorted(random.Random(f"{self.settings.seed} half {seed}").sample(range(parts), parts // 2))
            for seed in range(self.seeds)
        ]


def score_all(
    model: ChatModel,
    other: ChatModel | None,
    names: Sequence[str],
    training: TrainingPrompts,
    folder: Path,
    listener: Listener,
) -> dict[str, ResampledScore]:
    """Compute the named scores, or load those that the folder holds."""
    settings = training.settings
    key = fingerprint(
        model.identity,
        str(model.model.dtype),
        other and other.identity,
        training.harmful,
        training.benign,
        (settings.seed, training.seeds, settings.find.positions),
        model.rendering,
    )
    found: dict[str, ResampledScore] = {}
    # Scores that read the same tokens share the passes over the prompts.
    groups: dict[tuple[str, bool], list[Score]] = {}
    for name in names:
        score = scores.get(name)
        check_reading(model, score, score.tokens, 1, settings.find.positions, other)
        cached = _load(folder / f"{name}.safetensors", key, model, score, training)
        if cached is not None:
            found[name] = cached
        else:
            groups.setdefault((score.tokens, score.own_answers), []).append(score)
    if groups:
        norms = write_norms(model)
        for group in groups.values():
            parts, reading = _read(model, other, group[0], training, norms, listener)
            for score in group:
                found[score.name] = _score(parts, reading, score, training, model.device, listener)
                _save(folder / f"{score.name}.safetensors", key, found[score.name])
    return {name: found[name] for name in names}


def _read(
    model: ChatModel,
    other: ChatModel | None,
    score: Score,
    training: TrainingPrompts,
    norms: WriteNorms,
    listener: Listener,
) -> tuple[list[BothSides], Cost]:
    settings, parts, cost = training.settings, [], Cost()
    times = passes(score, score.tokens) - (score.measure is not None)
    total = times * (len(training.harmful) + len(training.benign))
    with listener.task(f"reading prompts ({score.tokens} tokens)", total) as advance:
        for harmful, benign in training.parts():
            with costing(model.device) as spent:
                part = read_both(
                    model,
                    harmful,
                    benign,
                    norms,
                    tokens=score.tokens,
                    last_tokens=1,
                    positions=settings.find.positions,
                    own_answers=score.own_answers,
                    response_tokens=RESPONSE_TOKENS,
                    batch_size=settings.batch_size,
                    other=other,
                    advance=advance,
                )
            parts.append(part)
            cost = cost + spent
    return parts, cost


def _score(
    parts: list[BothSides],
    cost: Cost,
    score: Score,
    training: TrainingPrompts,
    device: torch.device,
    listener: Listener,
) -> ResampledScore:
    measured = []
    with listener.task(f"computing {score.name}", len(parts)) as advance:
        for part in parts:
            with costing(device) as spent:
                measured.append(measure_both(part, score))
            cost = cost + spent
            advance(1)

    def compute(chosen: Sequence[int], seed: int) -> ScoredNeurons:
        read, values = [parts[part] for part in chosen], [measured[part] for part in chosen]
        positions = training.settings.find.positions
        return compute_score(read, values, score, score.tokens, positions, training.settings.seed + seed)

    with costing(device) as spent:
        whole = compute(range(len(parts)), 0)
    halves = tuple(compute(half, 1 + number) for number, half in enumerate(training.halves(len(parts))))
    return ResampledScore(whole, halves, cost + spent)


def _save(path: Path, key: str, scored: ResampledScore) -> None:
    every, cost = (scored.whole, *scored.halves), scored.cost
    tensors = numbered("score.harmful", [torch.cat(one.harmful) for one in every])
    tensors |= numbered("score.benign", [torch.cat(one.benign) for one in every])
    tensors |= scored.whole.directions.named()
    about = ScoreRecord(key=key, seconds=cost.seconds, peak=cost.peak, significant=scored.whole.significant)
    write_tensors(path, "file of scores", tensors, about)


def _load(path: Path, key: str, model: ChatModel, score: Score, training: TrainingPrompts) -> ResampledScore | None:
    """Read what `_save` wrote; None if it is missing or has another key."""
    if not exists(path):
        return None
    stored = StoredTensors.read(path, "file of scores", "Delete it: the scores are then computed again.")
    about = stored.about(ScoreRecord)
    if about.key != key:
        return None
    widths = [hook_point.width for hook_point in model.hook_points]
    if about.significant is not None and len(about.significant) != len(widths):
        raise stored.problem("it counts the tested neurons of another number of MLPs")
    directions = Directions.of(stored, widths)
    sides = ("score.harmful", "score.benign")
    names = [[f"{side}.{number}" for side in sides] for number in range(1 + training.seeds)]
    stored.check_names({*directions.named(), *itertools.chain(*names)})

    def scored(number: int) -> ScoredNeurons:
        harmful, benign = (
            list(stored.get(name, torch.float32, (sum(widths),)).split(widths)) for name in names[number]
        )
        significant = None if number else about.significant
        seed = training.settings.seed + number
        return ScoredNeurons(model, score, score.tokens, seed, harmful, benign, directions, significant)

    halves = tuple(scored(1 + number) for number in range(training.seeds))
    return ResampledScore(scored(0), halves, Cost(about.seconds, about.peak))


def of_size(scored: ScoredNeurons, percent: float) -> NeuronSet:
    """The score's neuron set whose size is closest to `percent` of the neurons.

    The budget of a contrastive score is its size. Other scores take the set difference of two rankings, whose size is
    only known once they are cut, so several cuts are tried.
    """
    best = scored.top(percent)
    if scored.score.contrastive:
        return best
    target = percent / 100 * sum(len(hook_point) for hook_point in scored.harmful)
    cut = percent / 2
    while cut <= WIDEST:
        found = scored.top(cut)
        if abs(len(found) - target) < abs(len(best) - target):
            best = found
        if len(found) >= target:
            break
        cut *= STEP
    return best


def jaccard(first: NeuronSet, second: NeuronSet) -> float:
    """Jaccard index of two sets: shared neurons over all neurons in either; 1 if both are empty."""
    shared = sum(int(torch.isin(*pair).sum()) for pair in zip(first.both, second.both, strict=True))
    union = len(first) + len(second) - shared
    return shared / union if union else 1.0


def mean_jaccard(sets: Sequence[NeuronSet]) -> float | None:
    """The mean Jaccard index over all pairs; None without a pair."""
    pairs = list(itertools.combinations(sets, 2))
    return sum(jaccard(*pair) for pair in pairs) / len(pairs) if pairs else None


def mean_spearman(scored: Sequence[ScoredNeurons]) -> float | None:
    """The mean rank correlation over all pairs; None without a pair, or if a score is the same for all neurons."""
    pairs = list(itertools.combinations([_ranking(one) for one in scored], 2))
    found = [float(spearmanr(*pair).statistic) for pair in pairs]
    return sum(found) / len(found) if found and not numpy.isnan(found).any() else None


def _ranking(scored: ScoredNeurons) -> numpy.ndarray:
    """The values that rank the neurons: of harmful prompts, or for contrastive scores the larger of both sides."""
    harmful = torch.cat(scored.harmful)
    if scored.score.contrastive:
        harmful = torch.maximum(harmful, torch.cat(scored.benign))
    return harmful.numpy()
