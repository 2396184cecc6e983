"""The figures of the training, and of the search for its settings, as Plotly specifications."""

from typing import Any

import plotly.graph_objects as go

from safety_neurons.report import text, tuning_tables
from safety_neurons.report.drawing import BLUE, GRAY, GREEN, PURPLE, SHARES, VERMILION, Figure, make_figure
from safety_neurons.report.tuning_tables import Tried

_MOST_POINTS = 500
# More points than this on a line are a line.
_MOST_MARKERS = 40
# An axis of shares shows no less than this, so that a difference of one prompt does not fill it.
_NARROWEST = 0.1
_MOST_SPOKEN = 24


def figures(results: dict[str, Any]) -> list[Figure | None]:
    """Those that the results have data for."""
    return [_loss(results), _validation(results), _trials(results)]


def _loss(results: dict[str, Any]) -> Figure | None:
    losses = [entry for entry in (results.get("training") or {}).get("loss") or [] if entry.get("loss") is not None]
    if not losses:
        return None
    shown = _thinned(losses)
    curve = go.Scatter(
        x=[entry["step"] for entry in shown],
        y=[entry["loss"] for entry in shown],
        mode=_mode(shown),
        line={"color": BLUE, "width": 2},
        hovertemplate="step %{x}: loss %{y:.3f}<extra></extra>",
        showlegend=False,
    )
    return make_figure(
        "loss",
        f"Line: training loss, {losses[0]['loss']:.2f} at step {losses[0]['step']}, {losses[-1]['loss']:.2f} at step "
        f"{losses[-1]['step']}.",
        260,
        [curve],
        xaxis={"title": {"text": "step"}, "showgrid": False},
        yaxis={"title": {"text": "loss"}, "rangemode": "tozero"},
    )


def _validation(results: dict[str, Any]) -> Figure | None:
    seen = (results.get("training") or {}).get("validation") or []
    if not seen:
        return None
    shown = _thinned(seen)
    # The last of equally good ones is kept.
    best = min(reversed(seen), key=lambda entry: entry["attack_success"] + entry["over_refusal"])
    traces = [
        go.Scatter(
            x=[entry["step"] for entry in shown],
            y=[entry[key] for entry in shown],
            name=name,
            mode=_mode(shown),
            line={"color": color, "width": 2, "dash": dash},
            marker={"color": color, "symbol": symbol, "size": 7},
            cliponaxis=False,
            hovertemplate=f"step %{{x}}, {name}: %{{y:.1%}}<extra></extra>",
        )
        for key, name, color, dash, symbol in (
            ("attack_success", "attacks succeed", VERMILION, "solid", "circle"),
            ("over_refusal", "over-refusal", BLUE, "dot", "square"),
        )
    ]
    kept = {"type": "line", "layer": "below", "line": {"color": GRAY, "width": 1, "dash": "dot"}}
    return make_figure(
        "validation",
        f"Lines: attack success and over-refusal on validation prompts, {_spoken(seen[0])} at step {seen[0]['step']}, "
        f"{_spoken(best)} at step {best['step']}, whose weights were kept.",
        260,
        traces,
        xaxis={"title": {"text": "step"}, "showgrid": False, "rangemode": "tozero"},
        yaxis=SHARES,
        shapes=[kept | {"x0": best["step"], "x1": best["step"], "y0": 0, "y1": 1, "yref": "paper"}],
    )


def _trials(results: dict[str, Any]) -> Figure | None:
    section = results.get("auto") or {}
    tried = tuning_tables.tried(results)
    if not tried:
        return None
    front = sorted((one for one in tried if one.on_front), key=lambda one: (one.over_refusal, -one.attack_success))
    chosen = [one for one in tried if one.chosen]
    traces = [
        go.Scatter(
            x=[one.over_refusal for one in front],
            y=[one.attack_success for one in front],
            name="Pareto front",
            mode="lines",
            line={"color": GRAY, "width": 1.5, "dash": "dot"},
            hoverinfo="skip",
        ),
        go.Scatter(
            x=[one.over_refusal for one in tried],
            y=[one.attack_success for one in tried],
            name="trials",
            mode="markers",
            marker={
                "color": [one.kl_divergence for one in tried],
                "colorscale": "Cividis",
                "cmin": 0,
                "cmax": max(one.kl_divergence for one in tried) or 1,
                "colorbar": {"title": {"text": "KL"}, "thickness": 10, "outlinewidth": 0, "tickformat": ".2g"},
                "size": 10,
                "line": {"color": GRAY, "width": 1},
            },
            cliponaxis=False,
            hovertext=[_trial(one) for one in tried],
            hoverinfo="text",
        ),
    ]
    marked = [("chosen", one.over_refusal, one.attack_success, VERMILION, "diamond-open", 17) for one in chosen]
    for name, key, color, symbol in (
        ("the run, tuned so", "tuned", GREEN, "square-open"),
        ("base", "base", PURPLE, "x-thin"),
    ):
        if (rates := section.get(key)) is not None:
            marked.append((name, rates["over_refusal"], rates["attack_success"], color, symbol, 13))
    for name, x, y, color, symbol, size in marked:
        marker = {"color": color, "symbol": symbol, "size": size, "line": {"color": color, "width": 2.5}}
        said = f"{name}: {text.percent(y)} of the attacks succeed, {text.percent(x)} over-refusal"
        traces.append(
            go.Scatter(
                x=[x],
                y=[y],
                name=name,
                mode="markers",
                marker=marker,
                cliponaxis=False,
                hovertext=[said],
                hoverinfo="text",
            )
        )
    return make_figure(
        "auto",
        f"Points: attack success over over-refusal on validation prompts, {len(tried):,} trials, {len(front):,} of "
        f"them on the Pareto front: {'; '.join(_trial(one) for one in front[:_MOST_SPOKEN])}.",
        400,
        traces,
        xaxis=_shares([one[1] for one in marked] + [one.over_refusal for one in tried])
        | {"title": {"text": "over-refusal", "font": {"size": 13}}},
        yaxis=_shares([one[2] for one in marked] + [one.attack_success for one in tried])
        | {"title": {"text": "attacks that succeed", "font": {"size": 13}}},
    )


def _shares(values: list[float]) -> dict[str, Any]:
    """An axis from 0 to a little more than the largest share."""
    end = max(_NARROWEST, *values)
    return {"tickformat": ".0%", "range": [-0.04 * end, 1.06 * end], "nticks": 6}


def _thinned(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A long training has more steps than a figure has pixels."""
    shown = entries[:: -(-len(entries) // _MOST_POINTS)]
    return shown if shown[-1] is entries[-1] else [*shown, entries[-1]]


def _mode(shown: list[dict[str, Any]]) -> str:
    return "lines+markers" if len(shown) <= _MOST_MARKERS else "lines"


def _spoken(entry: dict[str, Any]) -> str:
    return f"{text.percent(entry['attack_success'])} and {text.percent(entry['over_refusal'])}"


def _trial(one: Tried) -> str:
    """A trial in words."""
    return (
        f"trial {one.number}, {text.label(one.score, 40)}, {text.share(one.percent / 100)} of the neurons: "
        f"{text.percent(one.attack_success)} of the attacks succeed, {text.percent(one.over_refusal)} over-refusal, "
        f"KL {text.nats(one.kl_divergence)}"
    )
