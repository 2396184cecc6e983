"""Results in, one page out. The page holds its style, its script and its data, and loads nothing."""

import base64
import functools
import hashlib
import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from safety_neurons.core.files import write_text
from safety_neurons.core.tables import Table
from safety_neurons.core.visible import spelled_out, visible
from safety_neurons.report import (
    clouds,
    comparison,
    evaluation_tables,
    experiment_figures,
    experiment_tables,
    intervention_tables,
    neuron_map,
    run_figures,
    run_tables,
    summary,
    tables_of,
    text,
)
from safety_neurons.report.comparison import Runs
from safety_neurons.report.drawing import Figure
from safety_neurons.report.results import ExampleAnswer, RunResults

_MOST_EXAMPLES = 40
_MOST_ANSWERS = 12
# Characters of a text that a template does not cut itself.
_MOST_TEXT = 8000


def write_report(results: RunResults, path: Path) -> None:
    """Write the page of a whole or partial run.

    Raises:
        SafetyNeuronsError: the disk failed.
    """
    write_text(path, render(results), private=results.shows_responses)


def run_charts(results: RunResults) -> dict[str, Figure]:
    """Every figure of the page that the results have data for."""
    sections = (run_figures, neuron_map, experiment_figures, clouds)
    return {figure.name: figure for section in sections for figure in section.figures(results) if figure}


def render(results: RunResults) -> str:
    """The page as text."""
    drawn, planes = run_charts(results), clouds.planes(results)
    details = evaluation_tables.CellDetails()
    grids = evaluation_tables.grids(results.evaluation, details) if results.evaluation else []
    shown_first = clouds.first(planes) if planes else None
    script = _inline("page.js") + (_inline("grid.js") if grids else "") + (_inline("clouds.js") if planes else "")
    # Plotly's script is nearly all of the page's weight: once, and only where something is drawn.
    plotly = get_plotlyjs() if drawn else ""
    partial = summary.partial(results)

    def captioned(table: Table) -> Table:
        return replace(table, caption=f"{partial} {table.caption}".strip())

    return template("page.html.j2").render(
        results=results,
        verdict=summary.verdict(results),
        partial=partial,
        summary=summary,
        run_tables=run_tables,
        experiment_tables=experiment_tables,
        intervention_tables=intervention_tables,
        evaluation_tables=evaluation_tables,
        captioned=captioned,
        tables_of=lambda part: tables_of(results, part),
        cloud_planes=planes,
        cloud_first=shown_first,
        cloud_said="" if shown_first is None else clouds.said(planes[shown_first]),
        grids=grids,
        cells_behind=details.to_json(),
        one_in=neuron_map.drawn_share(results),
        examples=_examples(results.examples),
        figures=drawn,
        open_layers=8,
        open_examples=8,
        open_grids=2,
        style=Markup(_inline("page.css")),
        script=Markup(script),
        plotly=Markup(plotly),
        policy=_policy([plotly, script] if drawn else [script]),
    )


def _examples(answers: list[ExampleAnswer]) -> list[tuple[str, str, list[ExampleAnswer]]]:
    """Prompts with their set and all answers to them, in the order in which they were measured."""
    grouped: dict[tuple[str, str], list[ExampleAnswer]] = {}
    for one in answers:
        grouped.setdefault((one.prompts, one.prompt), []).append(one)
    shown = list(grouped.items())[:_MOST_EXAMPLES]
    return [(prompt, prompts, own[:_MOST_ANSWERS]) for (prompts, prompt), own in shown]


def write_comparison(runs: Runs, path: Path) -> None:
    """Write a page with several runs side by side, in figures and tables.

    Raises:
        SafetyNeuronsError: the disk failed.
    """
    drawn = {figure.name: figure for figure in comparison.comparison_figures(runs)}
    script, plotly = (_inline("page.js"), get_plotlyjs()) if drawn else ("", "")
    page = template("comparison.html.j2").render(
        runs=runs,
        tables=comparison.comparison_tables(runs),
        figures=drawn,
        style=Markup(_inline("page.css")),
        script=Markup(script),
        plotly=Markup(plotly),
        policy=_policy([plotly, script] if drawn else []),
    )
    write_text(path, page, private=any(results.shows_responses for results in runs.values()))


@functools.cache
def template(name: str) -> Any:
    # finalize is the last guard: a text that a template forgot to mark as untrusted still shows nothing hidden.
    environment = Environment(
        loader=PackageLoader("safety_neurons.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup | Undefined) else visible(value, _MOST_TEXT),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "untrusted": text.untrusted,
        "passage": text.passage,
        "visible": visible,
        "percent": text.percent,
        "interval": lambda rate: text.interval(rate.low, rate.high),
        "share": text.share,
        "score": text.score,
        "count": text.count,
        "duration": text.duration,
        "date": text.date,
        "verdict": summary.verdict,
        "script_json": script_json,
    }
    return environment.get_template(name)


def script_json(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in, and holds nothing hidden that a script would show."""
    encoded = json.dumps(text.everywhere(spelled_out, value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
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
