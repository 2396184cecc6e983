"""Every rival at every KL level: its candidate chosen on validation prompts, its effect on the others."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rivals.contract import Candidate, Lessons, Rival
from rivals.difference_in_means import difference_in_means
from rivals.neurons import found, random_like
from rivals.refusal_direction import refusal_direction
from rivals.scav import scav
from safety_neurons.core.statistics import Rate, Verdict, mean, mean_rate, paired_difference, share
from safety_neurons.experiments.equal_effect import Matched, match_kl
from safety_neurons.experiments.intervention import (
    DIRECTIONS,
    CausalDirection,
    InterventionRunner,
    Measurement,
    Steering,
)

FOUND, RANDOM = "found", "random"
RIVALS: dict[str, Rival] = {
    FOUND: found,
    "difference in means": difference_in_means,
    "refusal direction": refusal_direction,
    "scav": scav,
}
NAMES = (*RIVALS, RANDOM)
# The prompts on whose answers the KL divergence of all rivals is the same.
ORDINARY = "benign"


@dataclass(frozen=True)
class Scaled:
    """A candidate at the strength that gives a KL level on the ordinary validation prompts."""

    candidate: Candidate
    matched: Matched

    @property
    def steering(self) -> Steering:
        return self.candidate.steer(self.matched.strength)


@dataclass(frozen=True)
class Tested:
    """A rival (of one seed) at one level on one test: None is the base model."""

    toward: str
    level: float
    rival: str
    seed: int
    on: str
    scaled: Scaled | None
    moving: Measurement
    kl_divergence: float | None


@dataclass(frozen=True)
class Bench:
    """Measures rivals; everything is cached in the run's folder by what it depends on."""

    lessons: Lessons
    validation: InterventionRunner
    tests: Mapping[str, InterventionRunner]
    rivals: Sequence[str]
    levels: Sequence[float]
    seeds: int

    def measured(self) -> Iterator[Tested]:
        for direction in DIRECTIONS:
            yield from self._toward(direction)

    def _toward(self, direction: CausalDirection) -> Iterator[Tested]:
        for on, test in self.tests.items():
            yield Tested(direction.toward, 0.0, "base", 0, on, None, test.measurement(direction.moving, None), 0.0)
        chosen: dict[str, list[Candidate]] = {}
        for name in self.rivals:
            if name == RANDOM:
                percent = float(chosen[FOUND][0].variant.rstrip("%"))
                seeds = range(self.lessons.run.settings.seed + 1, self.lessons.run.settings.seed + 1 + self.seeds)
                chosen[name] = [random_like(self.lessons, direction.toward, percent, seed) for seed in seeds]
            else:
                chosen[name] = [self._choose(name, direction)]
        for level in self.levels:
            for name, candidates in chosen.items():
                for seed, candidate in enumerate(candidates):
                    scaled = self._scaled(candidate, level, f"{name}, {candidate.variant}")
                    for on, test in self.tests.items():
                        moving = test.measurement(direction.moving, scaled.steering)
                        kl = self._kl(test, scaled.steering)
                        yield Tested(direction.toward, level, name, seed, on, scaled, moving, kl)

    def _choose(self, name: str, direction: CausalDirection) -> Candidate:
        """The candidate with the largest effect on validation prompts at the middle level."""
        candidates = RIVALS[name](self.lessons, direction.toward)
        if len(candidates) == 1:
            return candidates[0]
        level = sorted(self.levels)[len(self.levels) // 2]
        effects = []
        with self.lessons.run.listener.task(f"choosing {name} toward {direction.toward}", len(candidates)) as advance:
            for candidate in candidates:
                scaled = self._scaled(candidate, level, f"{name}, {candidate.variant}")
                measured = self.validation.measurement(direction.moving, scaled.steering)
                # One that cannot be scaled to the level is no candidate at equal effect, unless none can.
                effects.append((scaled.matched.reached, measured.share(direction.verdict)))
                advance(1)
        return candidates[max(range(len(candidates)), key=lambda index: (effects[index], -candidates[index].changed))]

    def _scaled(self, candidate: Candidate, level: float, title: str) -> Scaled:
        with self.lessons.run.listener.task(f"{title}: scaling to {level:g} nats per token", 1) as advance:
            matched = match_kl(lambda strength: self._kl(self.validation, candidate.steer(strength)), level)
            advance(1)
        return Scaled(candidate, matched)

    def _kl(self, runner: InterventionRunner, one: Steering) -> float:
        # None: every answer is empty, and nothing can diverge.
        return mean(runner.kl_divergences(ORDINARY, one), 0).value or 0.0


def summarize(tested: Sequence[Tested], seed: int) -> list[dict[str, Any]]:
    """A row for each rival, level and test: random sets are one row, with the mean over the sets."""
    verdicts: dict[str, Verdict] = {one.toward: one.verdict for one in DIRECTIONS}
    groups: dict[tuple[str, str, float, str], list[Tested]] = {}
    for one in tested:
        groups.setdefault((one.toward, one.on, one.level, one.rival), []).append(one)
    rows = []
    for (toward, on, level, rival), group in groups.items():
        verdict, first = verdicts[toward], group[0]
        ours = groups.get((toward, on, level, FOUND))
        row: dict[str, Any] = {
            "toward": toward,
            "on": on,
            "level": level,
            "rival": rival,
            "sets": len(group),
            "n": len(first.moving.verdicts),
            "effect": asdict(_rate(group, verdict, seed)),
            "incoherent": asdict(_rate(group, "unscored", seed)),
            "kl_divergence": math.fsum(one.kl_divergence or 0.0 for one in group) / len(group),
            "scaled": [_described(one.scaled) for one in group if one.scaled is not None],
            "verdicts": [list(one.moving.verdicts) for one in group],
        }
        if ours is not None and rival not in (FOUND, "base"):
            # Each random set beside the found neurons.
            hits, own = _hits(group, verdict), _hits(ours, verdict) * len(group)
            row["minus_found"] = asdict(paired_difference(hits, own, "complied", seed))
        rows.append(row)
    return rows


def _hits(group: Sequence[Tested], verdict: Verdict) -> list[list[Verdict]]:
    """Whether each answer has the verdict, as verdicts: an incoherent answer is a miss, and not left out."""
    return [["complied" if hit else "refused" for hit in one.moving.are(verdict)] for one in group]


def _rate(group: Sequence[Tested], verdict: Verdict, seed: int) -> Rate:
    """The fraction of all prompts: Wilson's interval for one set, a bootstrap over prompts for several."""
    if len(group) == 1:
        return share(group[0].moving.are(verdict))
    return mean_rate(_hits(group, verdict), "complied", seed)


def _described(scaled: Scaled) -> dict[str, Any]:
    candidate = scaled.candidate
    about = {name: getattr(candidate, name) for name in ("variant", "changed", "of", "unit", "share")}
    return about | asdict(scaled.matched)
