"""A run's guard, fitted: its own few neurons, and the dose that works best on the run's validation prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from safety_neurons.calibration.detector import Detector, fit_detector
from safety_neurons.calibration.guard import Guard, fit_guard, guard
from safety_neurons.core.files import fingerprint
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.stages import score_as_settings_say
from safety_neurons.runs.validation import Validator
from safety_neurons.tuning.augmentation import augment
from safety_neurons.tuning.config import Validation

# The doses that are tried: below these little is refused, above answers break (docs/calibration.md).
ALPHAS = (2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Learnt:
    """The requests that detectors learn from, in the chat template.

    All are there as they are and in a disguise, so that it is the harm that is learnt. Disguised benign requests count
    as safe, but no threshold is set by them: `benign` are ordinary ones.
    """

    harmful: list[str]
    benign: list[str]
    borderline: list[str]

    @classmethod
    def of(cls, work: RunContext) -> "Learnt":
        """All training prompts of a run."""
        harmful, contrast, benign, borderline = (
            [prompt.text for prompt in work.chosen(name, "train", None)]
            for name in ("harmful", "contrast", "benign", "borderline")
        )

        def rendered(texts: Sequence[str], plain: bool = True) -> list[str]:
            sent = augment(texts, plain_share=float(plain))
            return [work.model.render(request.user, request.prefill) for request in sent]

        both, safe = [*harmful, *contrast], [*benign, *borderline]
        return cls(
            [*rendered(both), *rendered(both, plain=False)],
            rendered(benign),
            [*rendered(borderline), *rendered(safe, plain=False)],
        )

    @property
    def all(self) -> list[str]:
        return [*self.harmful, *self.benign, *self.borderline]

    def fit(self, features: Tensor) -> Detector:
        """A detector on features [all requests, features]."""
        parts = features.split([len(self.harmful), len(self.benign), len(self.borderline)])
        return fit_detector(parts[0], parts[1], parts[2])


class Dose(NamedTuple):
    """What the guard does to the validation prompts with one alpha; alpha 0 is the model without a guard."""

    alpha: float
    attack_success: float
    over_refusal: float


class Fitted(NamedTuple):
    """A guard, what it learnt from, and the doses that were tried for it: none where the settings name the dose."""

    guard: Guard
    learnt: Learnt
    doses: tuple[Dose, ...]


def guard_of(work: RunContext, as_settings_say: bool = False) -> Guard:
    """The guard in the run's folder, whatever its options were; made now where there is none of this run.

    With `as_settings_say` one with other options is not taken.
    """
    kept = work.folder.guard
    if kept.exists():
        found, names = Guard.load(kept), 2 if as_settings_say else 1
        if found.origin.split()[:names] == _origin(work).split()[:names]:
            return found
    return fit_and_keep(work).guard


def fit_and_keep(work: RunContext) -> Fitted:
    """The guard that the run's settings describe, made anew and put into the run's folder."""
    settings, learnt = work.settings, Learnt.of(work)
    neurons = score_as_settings_say(work).top(settings.guard.percent, settings.find.scope, settings.find.selection)
    with work.listener.task("fitting the guard", len(learnt.all)) as advance:
        fitted = fit_guard(
            work.model,
            neurons,
            learnt.harmful,
            learnt.benign,
            learnt.borderline,
            settings.guard,
            calibration=settings.calibrate,
            rendered=True,
            batch_size=settings.batch_size,
            advance=advance,
        )
    fitted = replace(fitted, origin=_origin(work))
    doses = () if settings.guard.alpha is not None else _tried(work, fitted)
    if doses:
        best = best_dose(doses)
        fitted = replace(fitted, alpha=best.alpha)
        work.listener.say(
            f"Guard: of the doses {', '.join(f'{dose.alpha:g}' for dose in doses[1:])}, {best.alpha:g} is best on the "
            f"validation prompts: attack success {doses[0].attack_success:.0%} -> {best.attack_success:.0%}, "
            f"over-refusal {best.over_refusal:.0%}."
        )
        if best.attack_success >= doses[0].attack_success:
            work.listener.say(
                "This guard stops no attack on the validation prompts. Try another guard.percent, find.score or "
                "guard.generated-tokens."
            )
    fitted.save(work.folder.guard)
    return Fitted(fitted, learnt, doses)


def best_dose(doses: Sequence[Dose]) -> Dose:
    """The dose with the least attack success and over-refusal together; of equal ones the smallest. Not alpha 0."""
    return min(
        (dose for dose in doses if dose.alpha),
        key=lambda dose: (round(dose.attack_success + dose.over_refusal, 9), dose.alpha),
    )


def _tried(work: RunContext, fitted: Guard) -> tuple[Dose, ...]:
    validator = Validator.open(work)
    with work.listener.task("trying the guard's dose on validation prompts", len(ALPHAS) + 1) as advance:

        def dose(alpha: float, found: Validation) -> Dose:
            advance(1)
            return Dose(alpha, found.attack_success, found.over_refusal)

        doses = [dose(0.0, validator.measure_base())]
        for alpha in ALPHAS:
            one = replace(fitted, alpha=alpha)
            with guard(work.model, one):
                doses.append(dose(alpha, validator.measure(f"guard {one.digest}", "guarded")))
    return tuple(doses)


def _origin(work: RunContext) -> str:
    """Two names: for the run that a guard is fitted on, and for the guard's options."""
    settings = work.settings
    sets = [work.prompts[name].sha256 for name in ("harmful", "contrast", "benign", "borderline")]
    ranked = settings.find.model_dump(mode="json", exclude={"percent"})
    run = fingerprint(work.answering, settings.seed, ranked, *sets)
    return f"{run} {fingerprint(settings.guard.model_dump(mode='json'), settings.calibrate.but_alphas())}"
