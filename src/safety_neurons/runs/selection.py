"""Select the pass over the corpus and the scale of a trained delta on the run's validation prompts.

A candidate is the delta after some pass, multiplied by a number: no training is needed to make one. Selected is the one
with the least attack success among those that refuse no safe set more often than the base model does, plus a margin.
"""

from dataclasses import dataclass

from safety_neurons.core.progress import Advance
from safety_neurons.report import summary
from safety_neurons.report.scale_curve import ScaleCurve, ScalePoint, ValidationPoint, excess, select
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.validation import Validator, count_of
from safety_neurons.tuning.config import SelectionConfig
from safety_neurons.tuning.delta import NeuronDelta

SCALES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
# With a safe set this far above the margin a candidate is out: its harmful prompts are not asked.
FAR = 0.1


def select_delta(
    run: RunContext, trained: NeuronDelta, config: SelectionConfig, subject: str = "found"
) -> tuple[NeuronDelta, ScaleCurve | None]:
    """The selected pass and scale of a delta that `tune` returned, and all that was measured.

    Of the last pass all scales are measured. Of the pass before it, those are that are next to the selected one, and so
    on backward until a pass is not better than the one after it. All candidates are asked the same prompts. Answers are
    cached by the digest of the delta. With `tune.select` off it is the last pass as trained, and nothing is measured.

    Args:
        subject: which neurons were tuned, for tables: found or random.
    """
    if not config.select:
        return trained, None
    validator = Validator.open(run, config.validation_prompts)
    each = count_of((*validator.safe, *validator.disguised, *validator.harmful))
    most = len(SCALES) + 3 * len(trained.earlier)
    with run.listener.task(f"selecting pass and scale ({subject} neurons)", each * (most + 1)) as advance:
        base = ValidationPoint(
            attack_success=validator.attack_success(run.engine, advance),
            refused=validator.refused(run.engine, advance),
            disguised=validator.refused_disguised(run.engine, advance),
        )
        candidates = _Candidates(run, validator, trained, config.max_over_refusal, base, advance)
        points = candidates.search()
        advance(each * (most - len(points)))
        selected = select(points, base, config.max_over_refusal)
        # A tie between candidates that are all far off needs their attacks, too.
        least = excess(points[selected], base, config.max_over_refusal)
        points = [
            candidates.with_attacks(point) if excess(point, base, config.max_over_refusal) == least else point
            for point in points
        ]
    points = sorted(points, key=lambda point: (point.epoch, point.scale))
    selected = select(points, base, config.max_over_refusal)
    curve = ScaleCurve(
        subject=subject, max_over_refusal=config.max_over_refusal, base=base, points=points, selected=selected
    )
    run.listener.say(summary.selection(curve))
    return trained.after(curve.selection.epoch).scale(curve.selection.scale), curve


@dataclass(frozen=True)
class _Candidates:
    """Measures candidates; `advance` counts answers, those that are not needed included."""

    run: RunContext
    validator: Validator
    trained: NeuronDelta
    max_over_refusal: float
    base: ValidationPoint
    advance: Advance

    def search(self) -> list[ScalePoint]:
        """The candidates that `select_delta` describes."""
        last = self.trained.epoch
        points = [self.measure(last, scale) for scale in SCALES]
        for epoch in range(last - 1, last - 1 - len(self.trained.earlier), -1):
            best = points[select(points, self.base, self.max_over_refusal)]
            place = SCALES.index(best.scale)
            points += [self.measure(epoch, scale) for scale in SCALES[max(0, place - 1) : place + 2]]
            if points[select(points, self.base, self.max_over_refusal)] is best:
                break
        return points

    def measure(self, epoch: int, scale: float) -> ScalePoint:
        """A candidate's refusals, and the rest if these are not far above the margin."""
        delta = self.trained.after(epoch).scale(scale)
        with delta.apply(self.run.model):
            refused = self.validator.refused(self.run.engine.under(change_of(delta)), self.advance)
        point = ScalePoint(epoch=epoch, scale=scale, norm=delta.norm, attack_success=None, refused=refused)
        if excess(point, self.base, self.max_over_refusal) > FAR:
            self.advance(count_of((*self.validator.harmful, *self.validator.disguised)))
            return point
        return self.with_attacks(point, self.advance)

    def with_attacks(self, point: ScalePoint, advance: Advance = lambda _: None) -> ScalePoint:
        """The point with its attack success and its refusals of disguised requests, if these are missing."""
        if point.attack_success is not None:
            return point
        delta = self.trained.after(point.epoch).scale(point.scale)
        with delta.apply(self.run.model):
            engine = self.run.engine.under(change_of(delta))
            attacks = self.validator.attack_success(engine, advance)
            disguised = self.validator.refused_disguised(engine, advance)
        return point.model_copy(update={"attack_success": attacks, "disguised": disguised})


def change_of(delta: NeuronDelta) -> str:
    """The name of the model with this delta, for the cache of answers."""
    return f"safetuning {delta.digest}"
