"""Several runs side by side: what each found, and in what they differ, in tables and in two figures."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.statistics import Rate
from safety_neurons.core.tables import Table, TableCell, words
from safety_neurons.core.visible import visible
from safety_neurons.report import run_tables, seeds_tables, summary, text
from safety_neurons.report.drawing import (
    BLUE,
    GRAY,
    GREEN,
    PURPLE,
    SHARES,
    VERMILION,
    Figure,
    make_figure,
    markers,
    names_axis,
)
from safety_neurons.report.record import HARMFUL
from safety_neurons.report.results import RunResults
from safety_neurons.report.run_tables import MOST_ROWS
from safety_neurons.report.summary import MEAN, BeforeAfter

_MOST_RUNS = 24
# More would not be told apart in a figure.
_MOST_DRAWN = 8
_LOOKS = [(color, symbol) for symbol in ("circle", "square") for color in (BLUE, VERMILION, GREEN, PURPLE)]
# Pixels for each run and each line of names.
_RUN, _LINE = 18, 16
# Runs by name, and what is said of each.
Runs = Mapping[str, RunResults]
_Lines = Mapping[str, Mapping[str, str | TableCell]]


def names(folders: list[Path]) -> list[str]:
    """A short name for each run folder, longer where two share a name.

    Raises:
        SafetyNeuronsError: a folder is given twice, or there are too many.
    """
    if len(set(folders)) < len(folders):
        raise SafetyNeuronsError("A run is named twice: name each run once.")
    if len(folders) > _MOST_RUNS:
        raise SafetyNeuronsError(f"{len(folders)} runs do not fit side by side: name at most {_MOST_RUNS}.")
    short = [folder.resolve().name for folder in folders]
    return [str(folder) if short.count(name) > 1 else name for folder, name in zip(folders, short, strict=True)]


def comparison_tables(runs: Runs) -> list[Table]:
    """The tables with a column for each run; without those that no run has numbers for."""
    read: list[tuple[str, str, Callable[[RunResults], Mapping[str, str | TableCell]]]] = [
        ("The runs", "", _overview),
        ("Before and after tuning: base → tuned", "prompts, attack", _changes),
        ("Tuned with several seeds: base → mean over trainings", "prompts, attack", _repeated),
        ("Refused while neurons are calibrated", "prompts, calibration: neurons", _calibrations),
        ("What the neurons write: AUROC of the words, 0.5 is chance", "neurons", _vocabulary),
        ("Harmful and benign prompts told apart by activations: AUROC", "neurons", _separability),
    ]
    tables = [_table(title, first, {name: of(results) for name, results in runs.items()}) for title, first, of in read]
    tables += [*_grids(runs), _differences(runs)]
    return [table for table in tables if table.rows]


def _table(title: str, first: str, found: _Lines) -> Table:
    """One row for each line that any run has something for."""
    keys = dict.fromkeys(key for lines in found.values() for key in lines)
    rows = [[key, *(lines.get(key, text.NONE) for lines in found.values())] for key in keys]
    return Table.of(title, words(first, *found), [one for one in rows if set(one[1:]) != {text.NONE}][:MOST_ROWS])


def _overview(results: RunResults) -> dict[str, str | TableCell]:
    run, neurons, training = results.run, results.neurons, results.training
    unchanged = training.unchanged_outside if training else None
    return {
        "model": run.model.name or text.NONE,
        "started": text.date(run.started),
        "seed": text.NONE if run.seed is None else str(run.seed),
        "score": neurons.score if neurons else text.NONE,
        "neurons": text.count(neurons.total if neurons else None),
        "share of the neurons": text.share(neurons.share_of_neurons if neurons else None),
        "share of the weights changed": text.share(training.share_of_parameters if training else None),
        "weights outside them unchanged": {True: "yes", False: "no: do not trust these numbers", None: text.NONE}[
            unchanged
        ],
        "minutes": summary.minutes(results),
        "result": summary.verdict(results).result,
    }


def _changes(results: RunResults) -> dict[str, str | TableCell]:
    return {
        f"{one.prompts}, {one.attack} ({one.measure})": f"{text.rate(one.base).text} → {text.rate(one.tuned).text}"
        for one in summary.by_main_judge(results.evaluation)
    }


def _repeated(results: RunResults) -> dict[str, str | TableCell]:
    group = summary.repeated(results)
    return {
        seeds_tables.name_of(one): f"{text.rate(one.before).text} → {text.rate(one.mean).text}, "
        f"SD {seeds_tables.points(one.spread)}, {len(one.trainings)} trainings"
        for one in (group.measures if group else [])
    }


def _calibrations(results: RunResults) -> dict[str, str | TableCell]:
    return {
        f"{one.prompts}, {one.condition}: {one.subject}": text.rate(one.rate)
        for one in results.rows
        if one.judge == results.rows[0].judge
    }


def _vocabulary(results: RunResults) -> dict[str, str | TableCell]:
    kinds = {"together": "found neurons together", "random": "random sets", "single": "one by one"}
    return {
        f"{one.side}: {said}": text.score(getattr(one, kind))
        for one, _, _ in run_tables.own_scores(results)
        for kind, said in kinds.items()
    }


def _separability(results: RunResults) -> dict[str, str | TableCell]:
    """All neurons of a run together: the page of each run has its layers."""
    whole = [one for one in (results.clouds.layers if results.clouds else []) if one.layer is None]
    return {
        name: text.mean(found, text.auroc)
        for one in whole
        for name, found in (("found", one.auroc), ("random", one.auroc_random))
    }


def _grids(runs: Runs) -> list[Table]:
    """Mean attack success, and one table for the refusals of each safe set."""
    found: dict[str, dict[str, dict[str, str | TableCell]]] = {}
    for name, results in runs.items():
        for one in results.evaluation.summary if results.evaluation else []:
            for what, rate in (("mean attack success", one.attack_success), *_refusals(one.over_refusal)):
                if rate:
                    lines = found.setdefault(what, {run: {} for run in runs})[name]
                    lines[f"{one.defense} ({one.model}, judge {one.judge})"] = text.rate(rate)
    return [_table(f"Attack by defense: {what}", "defense", lines) for what, lines in found.items()]


def _refusals(found: Mapping[str, Rate]) -> list[tuple[str, Rate]]:
    return [(f"{name} requests refused", rate) for name, rate in found.items()]


def _differences(runs: Runs) -> Table:
    """The settings, prompts and versions that are not the same in all runs."""
    table = _table(
        "In what they differ", "setting", {name: dict(run_tables.made_with(results)) for name, results in runs.items()}
    )
    different = [one for one in table.rows if len(set(one.cells[1:])) > 1]
    return Table(table.title, table.columns, tuple(different[:MOST_ROWS]))


def comparison_figures(runs: Runs) -> list[Figure]:
    """Attack success and refusals before and after tuning, if two runs or more measured them."""
    drawn = [
        _compared(runs, "compared-attacks", "share of attacks that succeed", harmful=True),
        _compared(runs, "compared-refusals", "share of harmless requests refused", harmful=False),
    ]
    return [figure for figure in drawn if figure]


def _compared(runs: Runs, name: str, what: str, harmful: bool) -> Figure | None:
    measured: dict[str, dict[str, BeforeAfter]] = {}
    for run, results in list(runs.items())[:_MOST_DRAWN]:
        lines = summary.by_main_judge(results.evaluation)
        own = [one for one in lines if (one.prompts == HARMFUL) is harmful and one.values != (None, None)]
        if own:
            measured[run] = {one.attack if harmful else one.prompts: one for one in own}
    if len(measured) < 2:
        return None
    order = list(dict.fromkeys(line for found in measured.values() for line in found))
    step = 0.7 / len(measured)
    traces = []
    for number, (run, found) in enumerate(measured.items()):
        shift = (number - (len(measured) - 1) / 2) * step
        color, symbol = _LOOKS[number]
        base, tuned = (
            [
                (order.index(line) + shift, rate)
                for line, one in found.items()
                if (rate := getattr(one, side)) and rate.value is not None
            ]
            for side in ("base", "tuned")
        )
        # A run that was never tuned is shown in its own color.
        traces.append(_base(run, base, color, symbol, alone=not tuned))
        if tuned:
            traces.append(markers(run, tuned, color, symbol, horizontal=True))
    said = "; ".join(
        f"{visible(run, 40)}, {visible(line, 60)}: "
        f"{text.percent(one.values[0])} before, {text.percent(one.values[1])} after"
        for run, found in measured.items()
        for line, one in found.items()
    )
    return make_figure(
        name,
        f"Points with intervals: {what}. {said}.",
        110 + (_LINE + _RUN * len(measured)) * len(order),
        traces,
        xaxis=SHARES,
        yaxis=names_axis([{MEAN: "mean of the attacks"}.get(line, line) for line in order]),
    )


def _base(run: str, placed: list[tuple[float, Rate]], color: str, symbol: str, alone: bool) -> Any:
    return go.Scatter(
        x=[rate.value for _, rate in placed],
        y=[place for place, _ in placed],
        mode="markers",
        name=text.label(run, 40),
        showlegend=alone,
        marker={"symbol": f"{symbol}-open", "size": 8, "color": color if alone else GRAY},
        hovertemplate=f"{text.label(run, 40)}, before: %{{x:.0%}}<extra></extra>",
    )
