"""Results in, one page out. The page holds its style, its script and its data, and asks nobody for anything."""

import base64
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from safety_neurons.core.files import write_text
from safety_neurons.report import (
    causal_tables,
    clouds,
    figures,
    grid_tables,
    judge_tables,
    neuron_map,
    rates,
    side_by_side_figures,
    summary,
    tables,
    text,
    tuning_tables,
)
from safety_neurons.report.results import check
from safety_neurons.report.side_by_side import Runs, comparison_tables


def write_report(results: dict[str, Any], path: Path) -> None:
    """Write the page of a whole or partial run; `results` is the content of results.json, and all that is used.

    Raises:
        SafetyNeuronsError: `results` is not of the schema that this version reads, or the disk failed.
    """
    write_text(path, render(results))


def render(results: dict[str, Any]) -> str:
    """The page as text."""
    check(results)
    drawn = figures.figures(results)
    grids, behind = grid_tables.grids(results)
    planes = clouds.planes(results)
    shown_first = clouds.first(planes) if planes else None
    script = _inline("page.js") + (_inline("grid.js") if grids else "") + (_inline("clouds.js") if planes else "")
    # Plotly's script is nearly all of the page's weight: once, and only where something is drawn.
    plotly = get_plotlyjs() if drawn else ""
    arms, comparisons = tables.comparisons(results["rows"])
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            results=results,
            run=results["run"],
            neurons=results.get("neurons"),
            weighting=tables.weighting(results),
            training=results.get("training"),
            verdict=summary.verdict(results),
            partial=summary.partial(results),
            tiles=summary.tiles(results),
            where=summary.where(results["neurons"]) if results.get("neurons") else "",
            cause=summary.causes(results["rows"]),
            calibrations=rates.select(results["rows"], stage="calibrate")[: tables.MOST_ROWS],
            doses=causal_tables.doses(results),
            directions=causal_tables.directions(results),
            detector_tests=causal_tables.detector_tests(results),
            cloud_layers=clouds.layers(results),
            cloud_planes=planes,
            cloud_first=shown_first,
            cloud_said="" if shown_first is None else clouds.said(planes[shown_first]),
            trials=tuning_tables.tried(results),
            tuned_with=tuning_tables.tuned_with(results),
            pairs=tuning_tables.pairs(results),
            adaptive_rows=tuning_tables.adaptive_rows(results),
            grids=grids,
            open_grids=grid_tables.OPEN_GRIDS,
            cells_behind=behind,
            judged=judge_tables.scored(results),
            agreed=judge_tables.agreements(results),
            confused=judge_tables.confusions(results),
            read_neurons=neuron_map.read_neurons(results),
            one_in=neuron_map.drawn_share(results),
            most_rows=tables.MOST_ROWS,
            arms=arms,
            comparisons=comparisons,
            several_judges=len({one.judge for one in comparisons}) > 1,
            words=tables.layer_words(results),
            vocabulary=tables.vocabulary_sides(results),
            examples=tables.examples(results.get("examples") or []),
            small_print=tables.small_print(results),
            figures=drawn,
            open_layers=tables.OPEN_LAYERS,
            open_examples=tables.OPEN_EXAMPLES,
            style=Markup(_inline("page.css")),
            script=Markup(script),
            plotly=Markup(plotly),
            policy=_policy([plotly, script] if drawn else [script]),
        )
    )


def write_comparison(runs: Runs, path: Path) -> None:
    """Write a page with several runs side by side, in figures and tables.

    Raises:
        SafetyNeuronsError: a run's results cannot be read, or the disk failed.
    """
    for results in runs.values():
        check(results)
    drawn = {figure.name: figure for figure in side_by_side_figures.figures(runs)}
    script, plotly = (_inline("page.js"), get_plotlyjs()) if drawn else ("", "")
    page = (
        _environment()
        .get_template("comparison.html.j2")
        .render(
            runs=runs,
            tables=comparison_tables(runs),
            figures=drawn,
            style=Markup(_inline("page.css")),
            script=Markup(script),
            plotly=Markup(plotly),
            policy=_policy([plotly, script] if drawn else []),
        )
    )
    write_text(path, page)


def _environment() -> Environment:
    # finalize is the last guard: a text that the template forgot to mark as untrusted still shows nothing hidden.
    environment = Environment(
        loader=PackageLoader("safety_neurons.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "untrusted": text.untrusted,
        "visible": text.visible,
        "token": text.token,
        "percent": text.percent,
        "interval": lambda rate: text.interval(rate.low, rate.high),
        "share": text.share,
        "auroc": text.auroc,
        "nats": text.nats,
        "score": text.score,
        "count": text.count,
        "duration": text.duration,
        "date": text.date,
        "signed": grid_tables.signed,
        "verdict": summary.verdict,
        "as_rate": rates.rate,
        "script_json": script_json,
    }
    return environment


def _finalize(value: Any) -> Any:
    return text.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def script_json(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in, whatever its strings hold."""
    # ensure_ascii also writes U+2028, U+2029 and lone surrogates as escapes.
    encoded = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(encoded.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _policy(scripts: list[str]) -> str:
    """A content security policy: nothing is loaded, and no script runs but the ones that we put there."""
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _inline(name: str) -> str:
    return (files("safety_neurons.report") / name).read_text(encoding="utf-8")
