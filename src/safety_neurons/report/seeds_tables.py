"""The tables of `experiment seeds`: all groups side by side, and each group's measures."""

from collections.abc import Iterable

from safety_neurons.core.fields import Change
from safety_neurons.core.statistics import Rate
from safety_neurons.core.tables import Table, TableCell, numbers, row, words
from safety_neurons.report import text
from safety_neurons.report.record import HARMFUL
from safety_neurons.report.results import RunResults
from safety_neurons.report.seeds_results import SeedsGroup, SeedsMeasure, SeedsResults

_MOST_GROUPS = 24
_MOST_ROWS = 200
_MOST_TRAININGS = 12


def seeds(found: SeedsResults) -> list[Table]:
    """The groups side by side, then one table for each."""
    shown = found.groups[:_MOST_GROUPS]
    return [side_by_side(shown), *(measures(one) for one in shown)]


def own(results: RunResults, subject: str) -> SeedsGroup | None:
    """The trainings of found or random neurons of the run's own size and learning rate, with several seeds."""
    settings = results.run.settings
    tune = settings.get("tune", {})
    size = (subject, tune.get("percent") or settings.get("find", {}).get("percent"), tune.get("learning_rate"))
    groups = results.seeds.groups if results.seeds else []
    return next((one for one in groups if (one.subject, one.percent, one.learning_rate) == size), None)


def side_by_side(groups: list[SeedsGroup]) -> Table:
    """A row for each group, a column for the mean over attacks and for each set of safe prompts."""
    columns = {name_of(one): one for group in groups[:1] for one in headline(group)}
    rows = [row(["before", "", *(text.rate(one.before) for one in columns.values())], "section")]
    for group in groups:
        own = {name_of(one): one for one in group.measures}
        rows.append(row([group_name(group), len(group.trainings), *(_spread(own.get(name)) for name in columns)]))
    title = "Tuning repeated: mean over the trainings, and the standard deviation between them"
    return Table.of(title, (*words("neurons"), *numbers("trainings", *columns)), rows)


def headline(group: SeedsGroup) -> list[SeedsMeasure]:
    """The mean over attacks, or the only attack, and the sets of safe prompts."""
    attacks = [one for one in group.measures if one.prompts == HARMFUL]
    return attacks[-1:] + [one for one in group.measures if one.prompts != HARMFUL][:_MOST_ROWS]


def measures(group: SeedsGroup) -> Table:
    """Before, each training, the mean, how far they spread, and the differences from before and from random neurons."""
    with_random = any(one.against_random for one in group.measures)
    rows = []
    for one in group.measures[:_MOST_ROWS]:
        each = [text.percent(rate.value) for rate in one.trainings[:_MOST_TRAININGS]]
        more = ["..."] if len(one.trainings) > _MOST_TRAININGS else []
        cells = [
            name_of(one),
            text.rate(one.before),
            " / ".join([*each, *more]),
            text.rate(one.mean),
            points(one.spread),
            _highest(one.trainings, group),
            _change(one.against_before),
            *([_change(one.against_random)] if with_random else []),
        ]
        rows.append(row(cells, "mean" if one.prompts == HARMFUL and one.attack == "mean" else ""))
    columns = numbers("before", "each training", "mean", "SD", "highest", "minus before")
    against = numbers("minus random") if with_random else ()
    title = f"{group_name(group)} ({text.count(group.neurons)}), learning rate {group.learning_rate:.2g}"
    return Table.of(title, (*words("prompts"), *columns, *against), rows)


def seeds_notes(found: SeedsResults) -> list[str]:
    """What a reader of these tables must know."""
    asked = ", ".join(f"{count:,} {name}" for name, count in found.requests.items())
    seeds = [one.seed for group in found.groups[:1] for one in group.trainings]
    differ = "a corpus and batches" if found.corpus is None else f"the pairs of {found.corpus}, in batches"
    notes = [
        f"Prompts: {found.on} ({asked}). Judge: {found.judge}. Attacks, and their mean: harmful requests that are "
        f"answered. Others: requests that are refused. Each training has {differ} of its own seed"
        + (f" ({seeds[0]} to {seeds[-1]})" if len(seeds) > 1 else "")
        + "; random neurons are other ones each time. SD: standard deviation between trainings, in percentage points. "
        "Intervals: 95%, of the mean and of differences for other requests and other trainings, of a rate before for "
        "other requests. Differences are in percentage points, paired by request (those that both sides have scored), "
        "and with random neurons by seed."
    ]
    if len(seeds) == 1:
        notes.append("One training says nothing of the spread between trainings: its interval is for requests alone.")
    notes += [f"{name} is left out: {why}." for name, why in list(found.left_out.items())[:_MOST_ROWS]]
    return notes


def group_name(group: SeedsGroup) -> str:
    return f"{group.subject} neurons, {group.percent:g}%"


def name_of(one: SeedsMeasure) -> str:
    if one.prompts != HARMFUL:
        return f"{one.prompts} refused"
    return "attacks, mean" if one.attack == "mean" else one.attack


def spread_said(one: SeedsMeasure) -> str:
    """The mean with its interval and the lowest and highest training, for sentences."""
    known = [rate.value for rate in one.trainings if rate.value is not None]
    if one.mean.value is None or not known:
        return text.NONE
    said = f"{text.percent(one.mean.value)} ({text.interval(one.mean.low, one.mean.high)})"
    return said + (f", {text.percent(min(known))} to {text.percent(max(known))}" if len(known) > 1 else "")


def points(value: float | None) -> str:
    """A standard deviation of rates, in percentage points."""
    return text.NONE if value is None else f"{100 * value:.1f}"


def _spread(one: SeedsMeasure | None) -> TableCell | str:
    if one is None:
        return text.NONE
    found = text.rate(one.mean)
    return TableCell(found.value, f"{found.detail} SD {points(one.spread)}".strip())


def _highest(rates: Iterable[Rate], group: SeedsGroup) -> TableCell | str:
    known = [(rate.value, one.seed) for rate, one in zip(rates, group.trainings, strict=True) if rate.value is not None]
    if not known:
        return text.NONE
    value, seed = max(known, key=lambda one: one[0])
    return TableCell(text.percent(value), f"(seed {seed})")


def _change(found: Change | None) -> TableCell | str:
    if found is None or found.value is None:
        return text.NONE
    if found.low is None:
        return text.signed(found.value)
    return TableCell(text.signed(found.value), f"({text.signed(found.low)} to {text.signed(found.high)})")
