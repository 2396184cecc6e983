"""A run's guard: its own few neurons, and the strength that works best on the run's validation prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from safety_neurons.calibration.detector import Detector, fit_detector
from safety_neurons.calibration.guard import Guard, fit_guard, guard
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import disk_errors, exists, fingerprint
from safety_neurons.report.results import read_results
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.find import score_neurons_of
from safety_neurons.runs.percents import can_guard, in_two_layers, unusable
from safety_neurons.runs.validation import Validation, Validator
from safety_neurons.tuning.config import DisguiseKind
from safety_neurons.tuning.disguise_files import learned_texts
from safety_neurons.tuning.disguises import in_turn, renderable

# Strengths to try: below them little is refused, above them answers break (docs/calibration.md).
ALPHAS = (2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class DetectorRequests:
    """The rendered requests that detectors learn from.

    Each is there plain and in a disguise, so that detectors learn the harm and not the wording. Disguised benign
    requests count as safe, but set no threshold: `benign` are the plain ones.
    """

    harmful: list[str]
    benign: list[str]
    borderline: list[str]

    @classmethod
    def of(cls, run: RunContext) -> "DetectorRequests":
        """At most `guard.prompts` training prompts of each of a run's sets."""
        harmful, contrast, benign, borderline = (
            [prompt.text for prompt in run.split(name, "train", run.settings.guard.prompts)]
            for name in ("harmful", "contrast", "benign", "borderline")
        )

        kinds = renderable(run.model, run.settings.tune.disguises)

        def rendered(texts: Sequence[str], kinds: Sequence[DisguiseKind] = ()) -> list[str]:
            sent = [disguise(text) for disguise, text in zip(in_turn(len(texts), kinds), texts, strict=True)]
            found = [run.model.render_conversation(request.conversation) for request in sent]
            if unfit := run.model.too_long(found):
                run.said_once(
                    f"The guard does not learn from {len(unfit)} disguised prompts: {next(iter(unfit.values()))}."
                )
            return [text for index, text in enumerate(found) if index not in unfit]

        both, safe = [*harmful, *contrast], [*benign, *borderline]
        return cls(
            [*rendered(both), *rendered(both, kinds)],
            rendered(benign),
            [*rendered(borderline), *rendered(safe, kinds)],
        )

    @property
    def all(self) -> list[str]:
        return [*self.harmful, *self.benign, *self.borderline]

    def fit(self, features: Tensor) -> Detector:
        """A detector on features [all requests, features]."""
        parts = features.split([len(self.harmful), len(self.benign), len(self.borderline)])
        return fit_detector(parts[0], parts[1], parts[2])


class GuardDose(NamedTuple):
    """The guard's effect on the validation prompts at one alpha; alpha 0 is the model without a guard."""

    alpha: float
    attack_success: float
    over_refusal: float


class Fitted(NamedTuple):
    """A guard, what it learned from, and the strengths that were tried: none if the settings name one."""

    guard: Guard
    learned: DetectorRequests
    doses: tuple[GuardDose, ...]


def guard_of(run: RunContext) -> Guard:
    """Load the run's guard, or fit one if it is missing or stale.

    A guard that was fitted on this run with other options is taken, unless this call was given options that the guard
    depends on.
    """
    found, names = _kept(run), 2 if {"guard", "calibrate"} & run.given.keys() else 1
    if found is not None and found.origin.split()[:names] == _origin(run).split()[:names]:
        if found.origin != _origin(run):
            run.said_once(
                f"The guard in {run.folder.path} was fitted with other options than those of the run, and is used as "
                "it is. Give the options of the guard in this call to fit it again."
            )
        return found
    return fit_and_keep(run).guard


def _kept(run: RunContext) -> Guard | None:
    """The guard in the run's folder.

    One that cannot be used is told and taken away, into a copy of the run as it was: it is then fitted again.
    """
    path = run.folder.guard
    if not exists(path):
        return None
    try:
        found = Guard.load(path, advice="The guard is fitted again.")
        _check_guard(run, found)
    except SafetyNeuronsError as error:
        run.listener.say(f"{error} The run as it was is kept in {run.folder.keep_replaced()}.")
        with disk_errors(path):
            path.unlink()
        return None
    return found


def _check_guard(run: RunContext, found: Guard) -> None:
    """Raise SafetyNeuronsError if a guard is of another model, or not the one that this run tested or evaluated."""
    path, made_for = run.folder.guard, found.neurons.provenance
    if made_for.identity != run.model.identity:
        raise SafetyNeuronsError(
            f"{path} is of {made_for.model} ({made_for.identity[:12]}), and this is a run of {run.model.name} "
            f"({run.model.identity[:12]}). The guard is fitted again."
        )
    if not exists(run.folder.results):
        return
    results = read_results(run.folder.results)
    known = {section.digest for section in [results.guard] if section} - {None}
    known |= {evaluation.guard for evaluation in [results.evaluation] if evaluation} - {None}
    if known and found.origin == _origin(run) and found.digest not in known:
        raise SafetyNeuronsError(
            f"{path} is not the guard that this run tested or evaluated: it was replaced. The guard is fitted again."
        )


def fit_and_keep(run: RunContext, *, control: bool = False) -> Fitted:
    """Fit the guard that the run's settings describe, and keep it in the run's folder.

    One that is there already is taken: fitted again, it would differ by rounding, and what was measured with it be out
    of date.

    Args:
        control: whether the guard is to be compared with as many random neurons.

    Raises:
        SafetyNeuronsError: as `fit_guard`, or too few neurons are left for the control.
    """
    settings, learned = run.settings, DetectorRequests.of(run)
    kept = _kept(run)
    fitted = kept if kept is not None and kept.origin == _origin(run) else _fit(run, learned)
    if control and (problem := fitted.neurons.crowded) is not None:
        raise unusable(run, score_neurons_of(run), "guard.percent", settings.guard.percent, problem, can_guard)
    doses = () if settings.guard.alpha is not None else _tried(run, fitted)
    if doses:
        best = best_dose(doses)
        fitted = replace(fitted, alpha=best.alpha)
        run.listener.say(
            f"Guard: of the strengths {', '.join(f'{dose.alpha:g}' for dose in doses[1:])}, {best.alpha:g} is best on "
            f"the validation prompts: attack success {doses[0].attack_success:.0%} -> {best.attack_success:.0%}, "
            f"over-refusal {best.over_refusal:.0%}."
        )
        if best.attack_success >= doses[0].attack_success:
            run.listener.say(
                "This guard stops no attack on the validation prompts. Try another guard.percent, find.score or "
                "guard.generated_tokens."
            )
    if kept is not None and kept.digest != fitted.digest:
        run.listener.say(f"The guard is replaced. The run as it was is kept in {run.folder.keep_replaced()}.")
    fitted.save(run.folder.guard)
    return Fitted(fitted, learned, doses)


def _fit(run: RunContext, learned: DetectorRequests) -> Guard:
    settings = run.settings
    scored = score_neurons_of(run)
    neurons = scored.top(settings.guard.percent, settings.find.scope, settings.find.selection)
    if not in_two_layers(neurons):
        problem = "A guard needs safety neurons in at least two layers, to decide and, later, to act"
        raise unusable(run, scored, "guard.percent", settings.guard.percent, problem, can_guard)
    with run.listener.task("fitting the guard", len(learned.all)) as advance:
        fitted = fit_guard(
            run.model,
            neurons,
            learned.harmful,
            learned.benign,
            learned.borderline,
            settings.guard,
            calibration=settings.calibrate,
            rendered=True,
            batch_size=settings.batch_size,
            advance=advance,
        )
    return replace(fitted, origin=_origin(run))


def best_dose(doses: Sequence[GuardDose]) -> GuardDose:
    """The strength with the least sum of attack success and over-refusal; of equal ones the smallest. Not alpha 0."""
    return min(
        (dose for dose in doses if dose.alpha),
        key=lambda dose: (round(dose.attack_success + dose.over_refusal, 9), dose.alpha),
    )


def _tried(run: RunContext, fitted: Guard) -> tuple[GuardDose, ...]:
    validator = Validator.open(run, run.settings.tune.validation_prompts)
    with run.listener.task("trying the guard's strength on validation prompts", len(ALPHAS) + 1) as advance:

        def dose(alpha: float, found: Validation) -> GuardDose:
            advance(1)
            return GuardDose(alpha, found.attack_success, found.over_refusal)

        doses = [dose(0.0, validator.measure_base())]
        for alpha in ALPHAS:
            one = replace(fitted, alpha=alpha)
            with guard(run.model, one):
                doses.append(dose(alpha, validator.measure(f"guard {one.digest}")))
    return tuple(doses)


def _origin(run: RunContext) -> str:
    """Two fingerprints: of the run that a guard is fitted on, and of the guard's options."""
    settings = run.settings
    sets = [run.prompts[name].sha256 for name in ("harmful", "contrast", "benign", "borderline")]
    ranked = settings.find.model_dump(mode="json", exclude={"percent"})
    found = fingerprint(run.engine.identity, settings.seed, ranked, learned_texts(settings.tune.disguises), *sets)
    return f"{found} {fingerprint(settings.guard.model_dump(mode='json'), settings.calibrate.but_alphas())}"
