"""Every score of every neuron, on all training prompts and on random halves of them, kept in a file each.

The prompts are read once, in parts whose sums add up, so that a half is the parts that were drawn for it.


Sets of the same size from every score, and how alike sets and rankings are."""

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import save_file
from scipy.stats import spearmanr

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import atomic_path, fingerprint, read_tensors
from safety_neurons.core.progress import Listener
from safety_neurons.experiments.cost import Cost, costing
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons import scores
from safety_neurons.neurons.find import ScoredNeurons, compute_score
from safety_neurons.neurons.neuron_set import Directions, NeuronSet
from safety_neurons.neurons.read import BothSides, check_reading, measure_both, passes, read_both, write_norms
from safety_neurons.neurons.scores import Score, WriteNorms
from safety_neurons.settings import Settings

# Rankings of each side are cut at up to half the neurons, in steps of this factor.
STEP = 1.1
WIDEST = 50.0


def of_size(scored: ScoredNeurons, percent: float) -> NeuronSet:
    """The set of a score that has `percent` of the neurons, or as nearly as can be.

    A contrastive score's budget is its size. The set difference of two rankings has a size that only a search for
    the cut tells; the nearest of a row of cuts is taken.
    """
    if scored.score.contrastive:
        return scored.top(percent)
    target = percent / 100 * sum(len(hook_point) for hook_point in scored.harmful)
    best = scored.top(percent)
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
    """Shared neurons by all neurons of two sets; 1 for two empty ones."""
    shared = union = 0
    for one, other in zip(first.both, second.both, strict=True):
        common = int(torch.isin(one, other).sum())
        shared += common
        union += len(one) + len(other) - common
    return shared / union if union else 1.0


def ranking(scored: ScoredNeurons) -> numpy.ndarray:
    """The numbers by which the neurons are ranked: of both sides where they compare them, or of harmful prompts."""
    harmful = torch.cat(scored.harmful)
    if scored.score.contrastive:
        harmful = torch.maximum(harmful, torch.cat(scored.benign))
    return harmful.numpy()


def mean_jaccard(sets: Sequence[NeuronSet]) -> float | None:
    """Over all pairs; None where there is no pair."""
    pairs = list(itertools.combinations(sets, 2))
    return sum(jaccard(*pair) for pair in pairs) / len(pairs) if pairs else None


def mean_spearman(scored: Sequence[ScoredNeurons]) -> float | None:
    """The mean rank correlation over all pairs; None where there is no pair."""
    pairs = list(itertools.combinations([ranking(one) for one in scored], 2))
    found = [float(spearmanr(*pair).statistic) for pair in pairs]
    # A score that is the same for all neurons ranks nothing.
    return sum(found) / len(found) if found and not numpy.isnan(found).any() else None


PARTS = 10
RESPONSE_TOKENS = 32


@dataclass(frozen=True)
class Scored:
    """A score on all prompts and on random halves, and what it cost on all prompts."""

    whole: ScoredNeurons
    halves: tuple[ScoredNeurons, ...]
    cost: Cost


@dataclass(frozen=True)
class Training:
    """The prompts that scores are computed from, and how."""

    harmful: tuple[str, ...]
    benign: tuple[str, ...]
    settings: Settings
    seeds: int

    def parts(self) -> list[tuple[list[str], list[str]]]:
        """Both sides in random parts of equal size to within one prompt."""
        count = min(PARTS, len(self.harmful), len(self.benign))
        if count < 2:
            raise SafetyNeuronsError("Comparing scores needs at least two training prompts on each side.")
        sides = []
        for number, prompts in enumerate((self.harmful, self.benign)):
            mixed = random.Random(f"{self.settings.seed} {number}").sample(prompts, len(prompts))
            sides.append([mixed[part::count] for part in range(count)])
        return list(zip(*sides, strict=True))

    def halves(self, parts: int) -> list[list[int]]:
        """For each seed the parts that make its half."""
        return [
            sorted(random.Random(f"{self.settings.seed} half {seed}").sample(range(parts), parts // 2))
            for seed in range(self.seeds)
        ]


def score_all(
    model: ChatModel,
    other: ChatModel | None,
    names: Sequence[str],
    training: Training,
    folder: Path,
    listener: Listener,
) -> dict[str, Scored]:
    """All scores; those that the folder holds already are read from it."""
    settings = training.settings
    key = fingerprint(
        model.identity,
        str(model.model.dtype),
        other and other.identity,
        training.harmful,
        training.benign,
        (settings.seed, training.seeds, settings.find.positions, settings.batch_size),
        (settings.system, settings.thinking, settings.chat_template),
    )
    found: dict[str, Scored] = {}
    groups: dict[tuple[str, bool], list[Score]] = {}
    for name in names:
        score = scores.get(name)
        check_reading(model, score, score.tokens, 1, settings.find.positions, other)
        kept = _load(folder / f"{name}.safetensors", key, model, score, training)
        if kept is not None:
            found[name] = kept
        else:
            groups.setdefault((score.tokens, score.own_answers), []).append(score)
    norms = write_norms(model) if groups else None
    for group in groups.values():
        assert norms is not None
        parts, reading = _read(model, other, group[0], training, norms, listener)
        for score in group:
            found[score.name] = _score(parts, reading, score, training, listener)
            _save(folder / f"{score.name}.safetensors", key, found[score.name])
    return {name: found[name] for name in names}


def _read(
    model: ChatModel,
    other: ChatModel | None,
    score: Score,
    training: Training,
    norms: WriteNorms,
    listener: Listener,
) -> tuple[list[BothSides], Cost]:
    settings, parts, cost = training.settings, [], Cost()
    times = passes(score, score.tokens) - (score.measure is not None)
    total = times * (len(training.harmful) + len(training.benign))
    with listener.task(f"reading prompts ({score.tokens} tokens)", total) as advance:
        for harmful, benign in training.parts():
            with costing() as spent:
                parts.append(
                    read_both(
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
                )
            cost = cost + spent
    return parts, cost


def _score(parts: list[BothSides], cost: Cost, score: Score, training: Training, listener: Listener) -> Scored:
    seed, positions = training.settings.seed, training.settings.find.positions
    measured = []
    with listener.task(f"computing {score.name}", len(parts)) as advance:
        for part in parts:
            with costing() as spent:
                measured.append(measure_both(part, score))
            cost = cost + spent
            advance(1)
    with costing() as spent:
        whole = compute_score(parts, measured, score, score.tokens, positions, seed)
    halves = [
        compute_score(
            [parts[part] for part in half],
            [measured[part] for part in half],
            score,
            score.tokens,
            positions,
            seed + 1 + number,
        )
        for number, half in enumerate(training.halves(len(parts)))
    ]
    return Scored(whole, tuple(halves), cost + spent)


def _save(path: Path, key: str, scored: Scored) -> None:
    tensors = {}
    for number, one in enumerate((scored.whole, *scored.halves)):
        tensors[f"harmful.{number}"], tensors[f"benign.{number}"] = torch.cat(one.harmful), torch.cat(one.benign)
    directions = scored.whole.directions
    for hook_point, (harmful, benign) in enumerate(zip(directions.harmful, directions.benign, strict=True)):
        tensors[f"direction.harmful.{hook_point}"], tensors[f"direction.benign.{hook_point}"] = harmful, benign
    about: dict[str, Any] = {
        "key": key,
        "seconds": scored.cost.seconds,
        "peak": scored.cost.peak,
        "significant": scored.whole.significant,
    }
    with atomic_path(path) as temporary:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, {"score": json.dumps(about)}
        )


def _load(path: Path, key: str, model: ChatModel, score: Score, training: Training) -> Scored | None:
    """What `_save` wrote, or None where there is nothing for this key."""
    if not path.exists():
        return None
    tensors, metadata = read_tensors(path)
    about = json.loads(metadata.get("score", "{}"))
    if about.get("key") != key:
        return None
    widths = [hook_point.width for hook_point in model.hook_points]
    directions = Directions(
        tuple(tensors[f"direction.harmful.{hook_point}"] for hook_point in range(len(widths))),
        tuple(tensors[f"direction.benign.{hook_point}"] for hook_point in range(len(widths))),
    )
    found = [
        ScoredNeurons(
            model,
            score,
            score.tokens,
            training.settings.seed + number,
            list(tensors[f"harmful.{number}"].split(widths)),
            list(tensors[f"benign.{number}"].split(widths)),
            directions,
            None if number or about["significant"] is None else tuple(about["significant"]),
        )
        for number in range(1 + training.seeds)
    ]
    return Scored(found[0], tuple(found[1:]), Cost(about["seconds"], about["peak"]))
