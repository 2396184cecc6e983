"""Several runs in one figure: attack success and refusals before and after tuning, run by run."""

from dataclasses import asdict
from typing import Any

import plotly.graph_objects as go

from safety_neurons.report import rates, text
from safety_neurons.report.drawing import BLUE, GRAY, GREEN, PURPLE, SHARES, VERMILION, Figure, make_figure, markers
from safety_neurons.report.rates import Rate
from safety_neurons.report.side_by_side import Runs

# Fewer than the tables hold: more would not be told apart.
_MOST_RUNS = 8
_LOOKS = [(color, symbol) for symbol in ("circle", "square") for color in (BLUE, VERMILION, GREEN, PURPLE)]
# Pixels for each run and each line of names.
_RUN, _LINE = 18, 16
Row = dict[str, Any]


def figures(runs: Runs) -> list[Figure]:
    """What was measured before and after tuning, if two runs or more measured it."""
    made = [
        _compared(runs, "compared-attacks", "share of attacks that succeed", rates.ATTACK_SUCCESS, "attack"),
        _compared(runs, "compared-refusals", "share of harmless requests refused", rates.REFUSED, "prompts"),
    ]
    return [figure for figure in made if figure]


def _compared(runs: Runs, name: str, what: str, metric: str, field: str) -> Figure | None:
    measured: dict[str, list[tuple[str, Row | None, Row | None]]] = {}
    for run, results in list(runs.items())[:_MOST_RUNS]:
        rows = rates.select(rates.main_judge(results["rows"], "evaluate"), metric=metric)
        names = dict.fromkeys(str(row[field]) for row in rows)
        changes = {named: rates.change(rows, **{field: named}) for named in names}
        pairs = [(named, _known(one.before), _known(one.after)) for named, one in changes.items()]
        if known := [pair for pair in pairs if pair[1] or pair[2]]:
            measured[run] = known
    if len(measured) < 2:
        return None
    order = list(dict.fromkeys(named for found in measured.values() for named, _, _ in found))
    step = 0.7 / len(measured)
    traces = []
    for number, (run, found) in enumerate(measured.items()):
        shift = (number - (len(measured) - 1) / 2) * step
        color, symbol = _LOOKS[number]
        after = [(order.index(named) + shift, row) for named, _, row in found if row]
        before = [(order.index(named) + shift, row) for named, row, _ in found if row]
        # What was never tuned is shown as it is.
        traces.append(_before(run, before, color, symbol, alone=not after))
        if after:
            traces.append(markers(run, after, color, symbol, horizontal=True))
    said = "; ".join(
        f"{run}, {named}: {_said(before)} before, {_said(after)} after"
        for run, found in measured.items()
        for named, before, after in found
    )
    return make_figure(
        name,
        text.visible(f"Points with intervals: {what}. {said}."),
        110 + (_LINE + _RUN * len(measured)) * len(order),
        traces,
        xaxis=SHARES,
        yaxis={
            "tickvals": list(range(len(order))),
            "ticktext": [text.label({rates.MEAN: "mean of the attacks"}.get(entry, entry)) for entry in order],
            "range": [len(order) - 0.5, -0.5],
            "showgrid": False,
        },
    )


def _said(row: Row | None) -> str:
    return text.percent(row["value"]) if row else "not measured"


def _known(one: Rate | None) -> Row | None:
    return None if one is None or one.value is None else asdict(one)


def _before(run: str, placed: list[tuple[float, Row]], color: str, symbol: str, alone: bool) -> Any:
    return go.Scatter(
        x=[row["value"] for _, row in placed],
        y=[place for place, _ in placed],
        mode="markers",
        name=text.label(run, 40),
        showlegend=alone,
        marker={"symbol": f"{symbol}-open", "size": 8, "color": color if alone else GRAY},
        hovertemplate=f"{text.label(run, 40)}, before: %{{x:.0%}}<extra></extra>",
    )
