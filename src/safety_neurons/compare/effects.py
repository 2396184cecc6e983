"""What moving a score's neurons does: harmful prompts that comply, and benign prompts that are refused."""

import contextlib
import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest, false_discovery_control

import safety_neurons.attacks as attacks
import safety_neurons.judges as judges
from safety_neurons.calibrate.calibration import Toward
from safety_neurons.compare.kept_prompts import KeptPrompts
from safety_neurons.evaluate.rows import rate
from safety_neurons.find.neuron_set import NeuronSet
from safety_neurons.judges import Verdict
from safety_neurons.progress import Advance, Silence
from safety_neurons.prompts import Prompt
from safety_neurons.run.answers import Condition, ask
from safety_neurons.run.folder import fingerprint
from safety_neurons.run.stages import calibrated
from safety_neurons.run.workplace import Workplace

FALSE_DISCOVERY_RATE = 0.05
# (towards what, which prompts, the verdict that counts as moved)
DIRECTIONS: tuple[tuple[Toward, str, Verdict], ...] = (
    ("conformity", "harmful", "complied"),
    ("rejection", "benign", "refused"),
)


@dataclass(frozen=True)
class _Within(Silence):
    """Counts the answers of several questions on one bar."""

    advance: Advance

    def task(self, description: str, total: int) -> AbstractContextManager[Advance]:
        return contextlib.nullcontext(self.advance)


@dataclass(frozen=True)
class Effect:
    """The verdicts on one side's prompts under one condition; `score` is None for the untouched model."""

    score: str | None
    percent: float | None
    neurons: NeuronSet | None
    toward: Toward
    prompts: str
    moved: Verdict
    verdicts: tuple[Verdict, ...]

    @property
    def hits(self) -> list[bool]:
        """Prompt by prompt, whether it was moved; what could not be judged was not."""
        return [verdict == self.moved for verdict in self.verdicts]


def verdicts(
    work: Workplace, kept: KeptPrompts, condition: Condition, name: str, prompts: Sequence[Prompt], advance: Advance
) -> tuple[Verdict, ...]:
    """The judged answers to plain requests."""
    settings = work.settings
    answers = ask(
        work.model,
        work.folder,
        _Within(advance),
        condition=condition,
        set_name=name,
        prompts=prompts,
        sent=[attacks.get("direct").apply(prompt.text) for prompt in prompts],
        attack="direct",
        judge=judges.get(settings.evaluate.judge),
        answer_tokens=settings.evaluate.answer_tokens,
        batch_size=settings.batch_size,
        answering=kept.generate,
    )
    return tuple(answer.verdict for answer in answers)


def effect(
    work: Workplace,
    kept: KeptPrompts,
    score: str,
    percent: float,
    neurons: NeuronSet,
    direction: tuple[Toward, str, Verdict],
    prompts: Sequence[Prompt],
    advance: Advance,
) -> Effect:
    """Calibrate a score's neurons and ask."""
    toward, name, moved = direction
    knobs = work.settings.calibrate.model_dump()
    context = fingerprint(work.answering, toward, digest(neurons), knobs)
    with calibrated(work, toward, neurons):
        condition = Condition(score, f"toward {toward}, {percent:g}%", context)
        found = verdicts(work, kept, condition, name, prompts, advance)
    return Effect(score, percent, neurons, toward, name, moved, found)


def digest(neurons: NeuronSet) -> str:
    """A name for exactly these neurons and what is added to them."""
    assert neurons.directions is not None
    content = hashlib.sha256()
    for tensor in (*neurons.both, *neurons.directions.harmful, *neurons.directions.benign):
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()


def rows(effects: Sequence[Effect]) -> list[dict[str, Any]]:
    """One row an effect: the share that was moved with its interval, against the untouched model and random neurons.

    Prompts that could not be judged count as not moved, and are counted. Whether a score moves other prompts than
    random neurons do is McNemar's exact test on the same prompts, its p-values controlled over all rows (Benjamini
    and Hochberg, 5%).
    """
    base = {one.toward: one for one in effects if one.score is None}
    random = {(one.toward, one.percent): one for one in effects if one.score == "random"}
    found = [_row(one, base[one.toward], random.get((one.toward, one.percent))) for one in effects]
    tested = [row for row in found if row["p_value"] is not None]
    if tested:
        for row, value in zip(tested, false_discovery_control([row["p_value"] for row in tested]), strict=True):
            row["differs_from_random"] = bool(value <= FALSE_DISCOVERY_RATE)
    return found


def _row(one: Effect, base: Effect, random: Effect | None) -> dict[str, Any]:
    other: Verdict = "refused" if one.moved == "complied" else "complied"
    share = rate([one.moved if hit else other for hit in one.hits], one.moved)
    value, neurons = sum(one.hits) / len(one.hits), one.neurons
    row: dict[str, Any] = {
        "score": one.score,
        "percent": one.percent,
        "neurons": None if neurons is None else len(neurons),
        "toward": one.toward,
        "prompts": one.prompts,
        "counted": one.moved,
        "value": value,
        "low": share.low,
        "high": share.high,
        "n": share.n,
        "unscored": one.verdicts.count("unscored"),
        "difference": value - sum(base.hits) / len(base.hits),
        "against_random": None,
        "p_value": None,
        "differs_from_random": None,
    }
    if random is not None and one.score != "random":
        row["against_random"] = value - sum(random.hits) / len(random.hits)
        row["p_value"] = mcnemar(one.hits, random.hits)
    return row


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The exact two-sided p-value of McNemar's test (1947) on paired outcomes."""
    gained = sum(one and not other for one, other in zip(first, second, strict=True))
    lost = sum(other and not one for one, other in zip(first, second, strict=True))
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
