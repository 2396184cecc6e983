"""The figures of the experiments: dose-response, smallest intervention, detectors, automatic tuning."""

import itertools
import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import plotly.graph_objects as go

from safety_neurons.core.statistics import Rate
from safety_neurons.core.visible import visible
from safety_neurons.report import experiment_tables as tables
from safety_neurons.report import text
from safety_neurons.report.drawing import (
    BLUE,
    GRAY,
    GREEN,
    PURPLE,
    SHARES,
    VERMILION,
    Figure,
    dotted,
    line,
    make_figure,
    markers,
    names_axis,
    points,
)
from safety_neurons.report.experiment_results import (
    AutoTuning,
    DoseRow,
    GuardTest,
    InterventionTrial,
    SearchDirection,
    SearchLimits,
    TuningTrial,
)
from safety_neurons.report.intervention_tables import MOST_DIRECTIONS
from safety_neurons.report.results import RunResults
from safety_neurons.report.run_tables import MOST_ROWS

_SYMBOLS = ("circle-open", "square-open", "triangle-up-open", "x-thin-open")
_DASHES = ("dot", "dash", "dashdot", "longdash")
# Panels from the top: a field of a row, its name on the axis, and the part of the figure's height that it has.
_PANELS = (("refused", "refused", [0.5, 1]), ("broken", "broken", [0.26, 0.42]), ("kl_divergence", "KL", [0, 0.18]))
_PERCENTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_MOST_SPOKEN = 24
# The smallest set that an axis without a zero can show, in percent.
_SMALLEST = 1e-6
# An axis of shares shows no less than this, so that a difference of one prompt does not fill it.
_NARROWEST = 0.1


def figures(results: RunResults) -> list[Figure | None]:
    """Those that the results have data for."""
    found: list[Figure | None] = []
    if results.dose_response:
        found += [_doses(results.dose_response.rows[: 2 * MOST_ROWS], prompts) for prompts in tables.SIDES]
    if results.search:
        shown = results.search.directions[:MOST_DIRECTIONS]
        limits = results.search.limits
        found += [_trials(number, one, limits) for number, one in enumerate(shown, 1) if one.trials]
    if results.guard:
        found.append(_detectors(results.guard))
    if results.auto:
        found.append(_auto(results.auto))
    return found


def _doses(rows: list[DoseRow], prompts: str) -> Figure | None:
    own = [row for row in rows if row.prompts == prompts]
    if not own:
        return None
    subjects = [name for name in dict.fromkeys(row.subject for row in rows) if name != "base"]
    base = [row for row in own if row.subject == "base"]
    looks = zip((one for one in subjects if one != "found"), itertools.cycle(zip(_DASHES, _SYMBOLS, strict=True)))
    styles = {subject: (GRAY, *look) for subject, look in looks} | {"found": (BLUE, "solid", "circle")}
    traces: list[Any] = []
    # The found neurons are drawn last, above the others.
    for subject in sorted(subjects, key=lambda one: one == "found"):
        # The base model is where both halves of a line meet.
        shown = sorted([row for row in own if row.subject == subject] + base, key=lambda row: row.alpha)
        for panel, (measure, _, _) in enumerate(_PANELS):
            if subject == "found":
                traces += _band(shown, measure, _axis(panel))
            traces.append(
                line(
                    text.label(_named(subject), 40),
                    [row.alpha for row in shown],
                    [_of(row, measure).value for row in shown],
                    styles[subject],
                    yaxis=_axis(panel),
                    legendrank=1 if subject == "found" else 2,
                    showlegend=panel == 0,
                    cliponaxis=False,
                    hovertext=[_dose(row, measure) for row in shown],
                    hoverinfo="text",
                )
            )
    for panel, (measure, _, _) in enumerate(_PANELS if base else ()):
        marker = {"color": VERMILION, "symbol": "diamond", "size": 9}
        trace = points("base", [base[0].alpha], [_of(base[0], measure).value], [_dose(base[0], measure)], marker)
        traces.append(trace.update(yaxis=_axis(panel), legendrank=3, showlegend=panel == 0))
    # Both sets of prompts on one scale, so that the two figures can be compared.
    ends = [row.kl_divergence.high or row.kl_divergence.value or 0 for row in rows]
    furthest = max(ends, default=0)
    scales = (
        SHARES,
        SHARES | {"tickvals": [0, 0.5, 1]},
        {"range": [-0.03 * furthest, 1.08 * furthest or 1], "nticks": 4},
    )
    axes = {
        _axis(panel).replace("y", "yaxis"): scale | {"domain": domain, "title": {"text": name, "font": {"size": 13}}}
        for panel, (scale, (_, name, domain)) in enumerate(zip(scales, _PANELS, strict=True))
    }
    return make_figure(
        f"doses-{prompts}",
        f"Lines over alpha, below 0 toward rejection, above 0 toward conformity: {prompts} prompts refused, broken "
        f"answers, and KL to the base model. Refused: {_doses_in_words(own, subjects)}.",
        540,
        traces,
        xaxis={
            "title": {"text": "← rejection | alpha | conformity →", "font": {"size": 13}},
            "anchor": "y3",
            "showgrid": False,
        },
        shapes=[dotted("x", 0)],
        **axes,
    )


def _axis(panel: int) -> str:
    return f"y{panel + 1}" if panel else "y"


def _of(row: DoseRow, measure: str) -> Rate:
    found: Rate = getattr(row, measure)
    return found


def _named(subject: str) -> str:
    """Whose neurons, in a legend."""
    return {"random": "random, same alpha"}.get(subject, subject)


def _band(rows: list[DoseRow], measure: str, axis: str) -> list[Any]:
    """The 95% interval of a line; without one it is as narrow as the line."""
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "yaxis": axis}
    x, rates = [row.alpha for row in rows], [_of(row, measure) for row in rows]
    low, high = (
        [one.value if getattr(one, side) is None else getattr(one, side) for one in rates] for side in ("low", "high")
    )
    return [
        go.Scatter(x=x, y=low, **edge),
        go.Scatter(x=x, y=high, fill="tonexty", fillcolor="rgba(0,114,178,0.22)", **edge),
    ]


def _dose(row: DoseRow, measure: str) -> str:
    """A point in words."""
    found, name = _of(row, measure), text.label(_named(row.subject), 40)
    used = tables.used_alpha(row)
    alpha = f"alpha {text.alpha(row.alpha)}" + ("" if used is None else f" ({used:.3g} on these neurons)")
    if measure == "kl_divergence":
        return f"{name}, {alpha}: KL {text.nats(found.value)}"
    return f"{name}, {alpha}: {text.rate(found).text} {measure}, n = {row.n:,}"


def _doses_in_words(rows: list[DoseRow], subjects: list[str]) -> str:
    said = []
    for name in ["base", *subjects]:
        own = [row for row in rows if row.subject == name]
        shown = own[:: -(-len(own) // _MOST_SPOKEN) or 1]
        cells = [f"{text.alpha(row.alpha)}: {text.percent(row.refused.value)}" for row in shown]
        said.append(f"{visible(_named(name), 40)} at alpha {', '.join(cells)}")
    return "; ".join(said)


def _trials(number: int, one: SearchDirection, limits: SearchLimits) -> Figure:
    tried = one.trials[: tables.MOST_TRIALS]
    others = [trial for trial in tried if trial != one.chosen]
    kept, left = ([trial for trial in others if trial.keeps(limits) is within] for within in (True, False))
    say = partial(_trial, one.verb)
    traces = [
        points(
            name,
            [max(trial.percent, _SMALLEST) for trial in trials],
            [trial.moved for trial in trials],
            list(map(say, trials)),
            {"color": color, "symbol": symbol, "size": size, "line": {"color": color, "width": 1.5}},
        )
        for name, trials, color, symbol, size in (
            ("tried", kept, BLUE, "circle", 8),
            ("beyond the limits", left, GRAY, "circle-open", 8),
            ("chosen", [one.chosen], VERMILION, "diamond", 14),
        )
        if trials
    ]
    ends = [math.log10(max(trial.percent, _SMALLEST)) for trial in (*tried, one.chosen)]
    return make_figure(
        f"search-{number}",
        f"Points: share of {visible(one.moving, 40)} prompts {one.verb} over the size of the set, for "
        f"{len(tried):,} trials, {len(left):,} of them beyond the limits. Chosen: {say(one.chosen)}.",
        330,
        traces,
        xaxis={
            "type": "log",
            "range": [min(ends) - 0.1, max(ends) + 0.1],
            "tickvals": list(_PERCENTS),
            "ticktext": [f"{percent:g}%" for percent in _PERCENTS],
            "title": {"text": "size of the set, of all neurons", "font": {"size": 13}},
            "showgrid": False,
        },
        yaxis=SHARES,
        shapes=[dotted("y", limits.target)],
    )


def _trial(verb: str, trial: InterventionTrial) -> str:
    return (
        f"{trial.neurons:,} neurons ({text.share(trial.percent / 100)}), alpha {trial.alpha:.2f}, "
        f"{trial.prompt_positions} prompt positions, {trial.generated_tokens} generated tokens: "
        f"{text.percent(trial.moved)} {verb}, {text.percent(trial.broken)} broken, KL on the other prompts "
        f"{text.nats(trial.side_kl_divergence)}"
    )


def _detectors(guard: GuardTest) -> Figure | None:
    rows = guard.detectors[:MOST_ROWS]
    if not rows:
        return None
    tests = list(dict.fromkeys(row.on for row in rows))
    names = list(dict.fromkeys(row.detector for row in rows))
    others = itertools.cycle([(VERMILION, "diamond"), (PURPLE, "cross"), (GREEN, "triangle-up")])
    spread = 0.7 / max(len(names), 4)
    traces = []
    for number, name in enumerate(names):
        color, symbol = _detector_style(name) or next(others)
        shift = (number - (len(names) - 1) / 2) * spread
        placed = [(tests.index(row.on) + shift, row.auroc) for row in rows if row.detector == name]
        traces.append(markers(name, placed, color, symbol, horizontal=True, say=_auroc))
    said = [
        f"{visible(row.on, 40)}, {visible(row.detector, 60)}: {text.auroc(row.auroc.value)}"
        for row in rows[:_MOST_SPOKEN]
    ]
    least = min(0.5, *(row.auroc.low for row in rows if row.auroc.low is not None), 0.5)
    return make_figure(
        "detectors",
        f"Points with intervals: AUROC of each detector on each test, 0.5 is chance. {'; '.join(said)}.",
        120 + 20 * len(names) + (16 + 17 * len(names)) * len(tests),
        traces,
        xaxis={"range": [least - 0.03, 1.03], "tickformat": ".1f", "dtick": 0.1},
        yaxis=names_axis(tests),
        shapes=[dotted("x", 0.5)],
    )


def _detector_style(name: str) -> tuple[str, str] | None:
    for start, style in (("guard", (BLUE, "circle")), ("found", (GREEN, "square")), ("random", (GRAY, "circle-open"))):
        if name.startswith(start):
            return style
    return None


def _auroc(one: Rate) -> str:
    return text.mean(one, text.auroc).text


def _auto(auto: AutoTuning) -> Figure | None:
    tried = tables.tuning_trials(auto)
    if not tried:
        return None
    on_front = frozenset(auto.front)
    front = sorted(
        (one for one in tried if one.number in on_front),
        key=lambda one: (one.objectives.over_refusal, -one.objectives.attack_success),
    )
    moved = [one.objectives.kl_divergence for one in tried]
    shades = {
        "color": moved,
        "colorscale": "Cividis",
        "cmin": 0,
        "cmax": max(moved) or 1,
        "colorbar": {"title": {"text": "KL"}, "thickness": 10, "outlinewidth": 0, "tickformat": ".2g"},
        "size": 10,
        "line": {"color": GRAY, "width": 1},
    }
    traces = [
        go.Scatter(
            x=_values(front, "over_refusal"),
            y=_values(front, "attack_success"),
            name="Pareto front",
            mode="lines",
            line={"color": GRAY, "width": 1.5, "dash": "dot"},
            hoverinfo="skip",
        ),
        points(
            "trials",
            _values(tried, "over_refusal"),
            _values(tried, "attack_success"),
            list(map(_tuning, tried)),
            shades,
        ),
    ]
    marked = [
        *(("chosen", one.objectives, VERMILION, "diamond-open", 17) for one in tried if one.number == auto.chosen),
        ("the run, tuned so", auto.tuned, GREEN, "square-open", 13),
        ("base", auto.base, PURPLE, "x-thin", 13),
    ]
    for name, rates, color, symbol, size in marked:
        marker = {"color": color, "symbol": symbol, "size": size, "line": {"color": color, "width": 2.5}}
        attacks, refusals = text.percent(rates.attack_success), text.percent(rates.over_refusal)
        said = f"{name}: {attacks} of the attacks succeed, {refusals} over-refusal"
        traces.append(points(name, [rates.over_refusal], [rates.attack_success], [said], marker))
    every = [*(one.objectives for one in tried), *(rates for _, rates, *_ in marked)]
    return make_figure(
        "auto",
        f"Points: attack success over over-refusal on validation prompts, {len(tried):,} trials, {len(front):,} of "
        f"them on the Pareto front: {'; '.join(map(_tuning, front[:_MOST_SPOKEN]))}.",
        400,
        traces,
        xaxis=_shares(one.over_refusal for one in every) | {"title": {"text": "over-refusal", "font": {"size": 13}}},
        yaxis=_shares(one.attack_success for one in every)
        | {"title": {"text": "attacks that succeed", "font": {"size": 13}}},
    )


def _values(trials: list[TuningTrial], key: str) -> list[float]:
    return [getattr(one.objectives, key) for one in trials]


def _shares(values: Iterable[float]) -> dict[str, Any]:
    """An axis from 0 to a little more than the largest share."""
    end = max(_NARROWEST, *values)
    return {"tickformat": ".0%", "range": [-0.04 * end, 1.06 * end], "nticks": 6}


def _tuning(one: TuningTrial) -> str:
    """A trial in words."""
    return (
        f"trial {one.number}, {text.label(one.settings['find.score'], 40)}, "
        f"{text.share(float(one.settings['find.percent']) / 100)} of the neurons: "
        f"{text.percent(one.objectives.attack_success)} of the attacks succeed, "
        f"{text.percent(one.objectives.over_refusal)} over-refusal, KL {text.nats(one.objectives.kl_divergence)}"
    )
