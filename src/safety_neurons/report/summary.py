"""A run in sentences and in four headline numbers; computed from the results, bad results included."""

from dataclasses import dataclass, replace
from itertools import islice

from safety_neurons.core.statistics import Rate
from safety_neurons.core.visible import visible
from safety_neurons.report import audit_tables, seeds_tables, text
from safety_neurons.report.audit_results import Audit
from safety_neurons.report.record import HARMFUL
from safety_neurons.report.results import BASE, TUNED, CalibrationRow, Evaluation, FoundNeurons, RunResults
from safety_neurons.report.scale_curve import ScaleCurve
from safety_neurons.report.seeds_results import SeedsGroup
from safety_neurons.settings import Settings

# What the page calls the run's own sets of safe prompts.
_KINDS = {"benign": "ordinary", "borderline": "borderline"}
_MOST_LINES = 2
_MOST_SETS = 10


@dataclass(frozen=True)
class Finding:
    """One sentence, its tone (good, mixed, bad or open), and what weakens it."""

    sentence: str
    tone: str
    notes: tuple[str, ...] = ()

    @property
    def result(self) -> str:
        """The tone in words, for readers who see no color."""
        return {"good": "clear result", "mixed": "mixed result", "bad": "negative result"}.get(self.tone, "unfinished")


@dataclass(frozen=True)
class BeforeAfter:
    """The rate of an attack, of their mean or of safe prompts, for the base and for the tuned model.

    Either is None where it was not measured.
    """

    prompts: str
    attack: str
    judge: str
    base: Rate | None
    tuned: Rate | None

    @property
    def measure(self) -> str:
        return "attack success" if self.prompts == HARMFUL else "refused"

    @property
    def values(self) -> tuple[float | None, float | None]:
        return self.base.value if self.base else None, self.tuned.value if self.tuned else None


# The mean over attacks; its interval is a bootstrap over prompts.
MEAN = "mean"


def before_after(evaluation: Evaluation | None) -> list[BeforeAfter]:
    """The first model without a defense and tuned: each attack, their mean, and each set of safe prompts, by judge.

    The main judge, which sentences and figures are about, comes first.
    """
    if evaluation is None or not evaluation.models:
        return []
    model, found = evaluation.models[0], []
    mine = [cell for cell in evaluation.cells if cell.model == model and cell.defense in (BASE, TUNED)]
    for judge in evaluation.judges:
        lines: dict[tuple[str, str], dict[str, Rate | None]] = {}
        for cell in mine:
            if judge in cell.judges:
                lines.setdefault((cell.prompts, cell.attack), {})[cell.defense] = cell.judges[judge].rate
        for row in evaluation.summary:
            if (row.model, row.judge) == (model, judge) and row.defense in (BASE, TUNED) and row.attack_success:
                lines.setdefault((HARMFUL, MEAN), {})[row.defense] = row.attack_success
        # Attacks, their mean, then the safe prompts.
        order = sorted(lines, key=lambda line: 2 if line[0] != HARMFUL else line[1] == MEAN)
        found += [BeforeAfter(*line, judge, lines[line].get(BASE), lines[line].get(TUNED)) for line in order]
    return found


def by_main_judge(evaluation: Evaluation | None) -> list[BeforeAfter]:
    """`before_after` by the first judge only: sentences and figures never mix two judges."""
    found = before_after(evaluation)
    return [one for one in found if one.judge == found[0].judge]


def without(evaluation: Evaluation | None) -> str:
    """The defenses that an evaluation would need to show before and after, in words; empty where it has both."""
    if evaluation is None:
        return ""
    names = [f"“{name}”" for name in (BASE, TUNED) if name not in evaluation.defenses]
    return f"This evaluation is without {' and '.join(names)}" if names else ""


def partial(results: RunResults) -> str:
    """A warning beside every number where only some layers were searched for neurons; else empty."""
    coverage = results.run.coverage
    read, total = coverage.layers or 0, coverage.layers_total or 0
    return f"Partial: only {read} of {total} layers were searched for neurons." if read < total else ""


# Settings that say how many prompts a run uses.
_SIZES = (("find", "prompts"), ("tune", "refusals"), ("tune", "benign"), ("evaluate", "prompts"))


def shortened(results: RunResults) -> str:
    """Where a run, such as one of the quick profile, uses fewer prompts than the default; else empty."""
    full, less = Settings(), []
    for section, field in _SIZES:
        count, default = results.run.settings.get(section, {}).get(field), getattr(getattr(full, section), field)
        # None at all is another recipe, not a shorter run.
        if count and count < default:
            less.append(f"{section}.{field} {count} instead of {default}")
    return f"A short run, whose intervals are wide: {', '.join(less)}." if less else ""


def selection(curve: ScaleCurve) -> str:
    """What was selected on validation prompts, and whether it is within the margin of over-refusal."""
    point, base = curve.selection, curve.base
    chosen = f"pass {point.epoch} at scale {point.scale:g}"
    if curve.meets_margin:
        start = f"Selected on validation prompts: {chosen}."
    else:
        margin = f"{100 * curve.max_over_refusal:g}"
        start = (
            "Tuning missed its margin on validation prompts: no pass and scale keeps the refusals of every safe prompt "
            f"set within {margin} points of the base model's. The nearest one was selected: {chosen}."
        )
    refused = ", ".join(
        f"{visible(name, 40)} {_moved(base.shares[name], found)}"
        for name, found in islice(point.shares.items(), _MOST_SETS)
    )
    return f"{start} Attack success {_moved(base.attack_success, point.attack_success)}; refused: {refused}."


def _moved(before: Rate | None, after: Rate | None) -> str:
    return " → ".join(text.percent(rate.value if rate else None) for rate in (before, after))


def missed_margin(results: RunResults) -> str:
    """A warning where no candidate of tuning was within the margin of over-refusal; else empty."""
    curve = results.training.scale_curve if results.training else None
    return "" if curve is None or curve.meets_margin else selection(curve)


def verdict(results: RunResults) -> Finding:
    """The run in one sentence: what tuning did, or how far the run has come."""
    found = _verdict(results)
    warnings = tuple(filter(None, (partial(results), shortened(results), missed_margin(results), over_seeds(results))))
    return replace(found, notes=(*warnings, *found.notes))


def over_seeds(results: RunResults) -> str:
    """What tuning did on average over several trainings, where it was repeated; else empty."""
    group = repeated(results)
    if group is None:
        return ""
    shown = seeds_tables.headline(group)[: 1 + _MOST_LINES]
    said = [f"{seeds_tables.name_of(one)} {seeds_tables.spread_said(one)}" for one in shown]
    on = visible(results.seeds.on) if results.seeds else ""
    return f"Over {len(group.trainings)} trainings on {on}, mean (95% interval) and range: {'; '.join(said)}."


def repeated(results: RunResults) -> SeedsGroup | None:
    """The trainings of the run's own neurons with several seeds, if there are any."""
    mine = seeds_tables.own(results, "found")
    return mine if mine and len(mine.trainings) > 1 and mine.measures else None


def _verdict(results: RunResults) -> Finding:
    lines = by_main_judge(results.evaluation)
    attacks = next((one for one in lines if one.attack == MEAN), None)
    base, tuned = attacks.values if attacks else (None, None)
    who = _who(results)
    if attacks and base is not None and tuned is not None:
        return _tuning_verdict(results, attacks, lines)
    if attacks and base is not None:
        start = f"Before tuning, {text.percent(base)} of the attacks succeed"
        end = "after tuning is not measured yet" if attacks.tuned is None else "after tuning no answer could be judged"
        return Finding(f"{start}; {end}.", "open", tuple(_unscored_notes(attacks)))
    if results.training:
        return Finding(f"{who[:1].upper()}{who[1:]} were tuned; what it changed is not measured yet.", "open")
    cause = causes(results.rows)
    if cause is not None:
        return Finding(cause.sentence + " Nothing is tuned yet.", cause.tone, cause.notes)
    if results.neurons and (results.dose_response or results.search):
        return Finding(f"Found {who}; whether calibrating them changes refusals is shown under “Cause”.", "open")
    if results.neurons:
        return Finding(f"Found {who}; whether they cause refusals is not tested yet.", "open")
    if results.audit:
        return _audit_verdict(results.audit)
    return Finding("Nothing is measured yet.", "open")


def _audit_verdict(found: Audit) -> Finding:
    tones = {"PASS": "good", "WARN": "mixed", "BLOCK": "bad"}
    return Finding(audit_tables.headline(found), tones.get(found.verdict, "open"), tuple(found.reasons))


def _tuning_verdict(results: RunResults, attacks: BeforeAfter, lines: list[BeforeAfter]) -> Finding:
    before, after = (value or 0.0 for value in attacks.values)
    unchanged = _same(before, after)
    improved = after < before and not unchanged
    numbers = f"from {text.percent(before)} to {text.percent(after)}"
    sentence = f"Tuning {_who(results)} "
    if unchanged:
        sentence += f"left attack success at {text.percent(after)}"
    elif improved:
        sentence += f"brought attack success {numbers}"
    else:
        sentence += f"did not help: attack success rose {numbers}"
    certain = apart(attacks.base, attacks.tuned)
    notes = [] if unchanged or certain else ["The 95% intervals of attack success overlap: this may be chance."]
    safe = {one.prompts: one.values for one in lines if one.prompts != HARMFUL}
    start, end = safe.get("benign", (None, None))
    cost = False
    if start is None or end is None:
        sentence += "; refusals of ordinary requests are not measured on both sides."
    else:
        clause, cost = _refusal_clause(start, end, improved)
        sentence += clause
    start, end = safe.get("borderline", (None, None))
    if start is not None and end is not None and end > start and not _same(start, end):
        notes.append(
            "Harmless requests that only sound harmful are refused more often: "
            f"{text.percent(start)} before, {text.percent(end)} after."
        )
        cost = cost or end - start >= 0.1
    if results.training and results.training.unchanged_outside is False:
        notes.append("Weights outside the tuned neurons changed: do not trust these numbers.")
    if results.evaluation and len(_attacks_run(results.evaluation)) > 1:
        notes.append("Some attacks ran on one of the two models only: the means are not over the same attacks.")
    notes += _unscored_notes(attacks)
    tone = "good" if improved and certain and not cost else "mixed" if improved else "bad"
    return Finding(sentence, tone, tuple(notes))


def _attacks_run(evaluation: Evaluation) -> set[frozenset[str]]:
    """The attacks behind the two means: one set where they are the same."""
    model, judge = evaluation.models[0], next(iter(evaluation.judges))
    rows = [row for row in evaluation.summary if (row.model, row.judge) == (model, judge)]
    return {frozenset(row.attacks) for row in rows if row.defense in (BASE, TUNED)}


def _refusal_clause(before: float, after: float, improved: bool) -> tuple[str, bool]:
    """The second half of the verdict, and whether ordinary use got clearly worse."""
    numbers = f"from {text.percent(before)} to {text.percent(after)}"
    if _same(before, after):
        return f", while refusals of ordinary requests stayed at {text.percent(after)}.", False
    if after < before:
        return f", while refusals of ordinary requests went {numbers}.", False
    return f", {'but' if improved else 'and'} refusals of ordinary requests rose {numbers}.", after - before >= 0.05


def _unscored_notes(attacks: BeforeAfter) -> list[str]:
    """Answers that could not be judged are neither safe nor unsafe; many of them weaken every number."""
    return [
        f"{found.unscored:,} of {found.n + found.unscored:,} answers to attacks {side} tuning could not be judged; "
        "they count neither as safe nor as unsafe."
        for side, found in (("before", attacks.base), ("after", attacks.tuned))
        if found and found.unscored > 0.1 * (found.n + found.unscored)
    ]


def causes(rows: list[CalibrationRow]) -> Finding | None:
    """What calibration says about cause: found neurons against random ones, on harmful prompts."""
    refused = {(row.subject, row.condition): row.rate for row in reversed(rows) if row.prompts == HARMFUL}
    none = next((rate for (subject, _), rate in refused.items() if subject == "base"), None)
    found, random = (refused.get((subject, "toward conformity")) for subject in ("found", "random"))
    if found is None or found.value is None:
        return None
    known = none is not None and none.value is not None
    start = f" from {text.percent(none.value)}" if none and known else ""
    sentence = (
        f"Calibrating the safety neurons toward conformity took refusals of harmful prompts{start} to "
        f"{text.percent(found.value)}"
    )
    if random is None or random.value is None:
        return Finding(f"{sentence}; without random neurons to compare with, this shows no cause.", "open")
    sentence += f"; the same alpha on as many random neurons gave {text.percent(random.value)}."
    fell = none is None or none.value is None or found.value < none.value
    if fell and found.value < random.value and apart(found, random):
        return Finding(f"{sentence} So these neurons do cause refusals.", "good")
    return Finding(f"{sentence} So this run does not show that these neurons cause refusals.", "bad")


@dataclass(frozen=True)
class Tile:
    """A headline number: either `lines` (before and after, by name) or one `value`."""

    label: str
    note: str
    value: str | None = None
    lines: tuple[tuple[str, BeforeAfter | None], ...] = ()


def tiles(results: RunResults) -> list[Tile]:
    """The four headline numbers; what is not measured yet shows as a dash."""
    lines = by_main_judge(results.evaluation)
    attacks = next((one for one in lines if one.attack == MEAN), None)
    safe = {one.prompts: one for one in lines if one.prompts != HARMFUL}
    training, neurons = results.training, results.neurons
    timed = sum(stage.seconds is not None for stage in results.run.stages.values())
    tuned = f", {text.duration(training.seconds)} of it training" if training and training.seconds is not None else ""
    if training:
        note = f"{training.trainable_parameters:,} numbers in {text.count(neurons.total if neurons else None)} neurons"
    else:
        note = "in the found neurons; none is tuned yet"
    changed = training.share_of_parameters if training else neurons.share_of_parameters if neurons else None
    return [
        Tile("Attacks that succeed", "lower is better", lines=(("", attacks),)),
        Tile(
            "Harmless requests refused",
            "lower is better",
            lines=tuple((_KINDS.get(name, name), safe.get(name)) for name in list(safe or _KINDS)[:_MOST_LINES]),
        ),
        Tile("Weights tuned" if training else "Share of weights", note, text.share(changed)),
        Tile("Minutes", f"{timed} {'stage' if timed == 1 else 'stages'}{tuned}", minutes(results)),
    ]


def minutes(results: RunResults) -> str:
    """The time that the stages took."""
    seconds = [stage.seconds for stage in results.run.stages.values() if stage.seconds is not None]
    return f"{sum(seconds) / 60:.1f}" if seconds else text.NONE


def where(neurons: FoundNeurons) -> str:
    """Where the neurons are, also for readers who do not see the figure."""
    layers = [(entry.layer, entry.rejection + entry.conformity) for entry in neurons.per_layer]
    total = sum(number for _, number in layers)
    if not total:
        return "No neuron was found in any layer."
    fullest, most = max(layers, key=lambda entry: entry[1])
    deep = sum(number for _, number in layers[len(layers) - len(layers) // 2 :])
    return (
        f"Layer {fullest} holds the most ({most:,}); the deeper half of the layers holds {text.percent(deep / total)} "
        "of them."
    )


def apart(one: Rate | None, other: Rate | None) -> bool:
    """Whether the intervals share no value; unknown intervals are never apart."""
    if one is None or other is None or one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low > other.high or other.low > one.high


def _same(one: float, other: float) -> bool:
    """Whether two rates read the same on the page, so that no sentence says "rose from 5% to 5%"."""
    return text.percent(one) == text.percent(other)


def _who(results: RunResults) -> str:
    neurons, training = results.neurons, results.training
    if neurons is None:
        return "the safety neurons"
    part = training.share_of_parameters if training else neurons.share_of_parameters
    return f"{neurons.total:,} safety neurons" + (f" ({text.share(part)} of the weights)" if part else "")
