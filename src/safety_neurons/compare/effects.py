"""What moving a score's neurons does: harmful prompts that comply, and benign prompts that are refused."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import false_discovery_control

import safety_neurons.attacks as attacks
import safety_neurons.judges as judges
from safety_neurons.calibrate.calibration import calibrate
from safety_neurons.calibrate.dose import digest
from safety_neurons.calibrate.knobs import Toward
from safety_neurons.evaluate.rows import mcnemar, rate
from safety_neurons.find.neuron_set import NeuronSet
from safety_neurons.judges import Verdict
from safety_neurons.progress import Advance, Within
from safety_neurons.prompts import Prompt
from safety_neurons.run.answers import Condition, ask
from safety_neurons.run.kept_prompts import KeptPrompts
from safety_neurons.run.workplace import Workplace
from safety_neurons.storage import fingerprint

FALSE_DISCOVERY_RATE = 0.05
# (towards what, which prompts, the verdict that counts as moved)
DIRECTIONS: tuple[tuple[Toward, str, Verdict], ...] = (
    ("conformity", "harmful", "complied"),
    ("rejection", "benign", "refused"),
)


@dataclass(frozen=True)
class Moved:
    """A score's neurons, the alpha with which they are moved, and how much that adds (see `calibrate.dose`)."""

    score: str
    percent: float
    neurons: NeuronSet
    alpha: dict[Toward, float]
    dose: dict[Toward, float]


@dataclass(frozen=True)
class Effect:
    """The verdicts on one side's prompts under one condition; nothing is `by` which the untouched model is moved."""

    by: Moved | None
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
        Within(advance),
        condition=condition,
        set_name=name,
        prompts=prompts,
        sent=[attacks.template("direct").apply(prompt.text) for prompt in prompts],
        attack="direct",
        judge=judges.rules(settings.evaluate.judge),
        answer_tokens=settings.evaluate.answer_tokens,
        batch_size=settings.batch_size,
        answering=kept.generate,
    )
    return tuple(answer.verdict for answer in answers)


def effect(
    work: Workplace,
    kept: KeptPrompts,
    by: Moved,
    direction: tuple[Toward, str, Verdict],
    prompts: Sequence[Prompt],
    advance: Advance,
) -> Effect:
    """Calibrate a score's neurons and ask."""
    toward, name, moved = direction
    settings = work.settings.calibrate
    knobs = settings.model_dump() | {f"alpha_{toward}": by.alpha[toward]}
    condition = Condition(
        by.score,
        f"toward {toward}, {by.percent:g}%",
        fingerprint(work.answering, toward, digest(by.neurons), knobs),
    )
    with calibrate(
        work.model,
        by.neurons,
        toward=toward,
        alpha=by.alpha[toward],
        **asdict(settings.knobs()),
    ):
        return Effect(by, toward, name, moved, verdicts(work, kept, condition, name, prompts, advance))


def moved_by(work: Workplace, score: str, percent: float, neurons: NeuronSet, unit: float, factor: float) -> Moved:
    """A set that is calibrated with `factor` times the settings' alpha; `unit` is the dose of alpha 1."""
    settings = work.settings.calibrate
    alpha: dict[Toward, float] = {
        "conformity": factor * settings.alpha("conformity"),
        "rejection": factor * settings.alpha("rejection"),
    }
    return Moved(score, percent, neurons, alpha, {toward: unit * value for toward, value in alpha.items()})


def rows(effects: Sequence[Effect]) -> list[dict[str, Any]]:
    """One row an effect: the share that was moved with its interval, against the untouched model and random neurons.

    Prompts that could not be judged count as not moved, and are counted. Whether a score moves other prompts than
    random neurons do is McNemar's exact test on the same prompts, its p-values controlled over all rows (Benjamini
    and Hochberg, 5%).
    """
    base = {one.toward: one for one in effects if one.by is None}
    random = {(one.toward, one.by.percent): one for one in effects if one.by is not None and one.by.score == "random"}
    found = [_row(one, base[one.toward], random[one.toward, one.by.percent] if one.by else None) for one in effects]
    tested = [row for row in found if row["p_value"] is not None]
    if tested:
        for row, value in zip(tested, false_discovery_control([row["p_value"] for row in tested]), strict=True):
            row["differs_from_random"] = bool(value <= FALSE_DISCOVERY_RATE)
    return found


def _row(one: Effect, base: Effect, random: Effect | None) -> dict[str, Any]:
    other: Verdict = "refused" if one.moved == "complied" else "complied"
    share = rate([one.moved if hit else other for hit in one.hits], one.moved)
    value, by = sum(one.hits) / len(one.hits), one.by
    row: dict[str, Any] = {
        "score": None if by is None else by.score,
        "percent": None if by is None else by.percent,
        "neurons": None if by is None else len(by.neurons),
        "alpha": None if by is None else by.alpha[one.toward],
        "dose": None if by is None else by.dose[one.toward],
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
    if random is not None and random is not one:
        row["against_random"] = value - sum(random.hits) / len(random.hits)
        row["p_value"] = mcnemar(one.hits, random.hits)
    return row
