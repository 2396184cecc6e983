"""The results in other forms than a page: tables as Markdown, figures as files, and the card of a merged model."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.io
from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import atomic_path, disk_errors, write_text
from safety_neurons.core.folders import remove_leftovers
from safety_neurons.core.markdown import Markdown, code_line, escaped
from safety_neurons.core.tables import markdown
from safety_neurons.core.temporary import temporary_path
from safety_neurons.models.presets import PRESETS
from safety_neurons.report import (
    PARTS,
    audit_tables,
    evaluation_tables,
    experiment_tables,
    run_figures,
    run_tables,
    summary,
    tables_of,
    text,
)
from safety_neurons.report.audit_results import Audit
from safety_neurons.report.comparison import Runs, comparison_tables
from safety_neurons.report.drawing import Figure
from safety_neurons.report.page import run_charts
from safety_neurons.report.results import Evaluation, RunResults

if TYPE_CHECKING:
    from safety_neurons.tuning.delta import NeuronDelta

# Pixels; PNG files have twice as many in each direction.
_WIDTH = 900
_PAPER = {
    "paper_bgcolor": "#fff",
    "plot_bgcolor": "#fff",
    "font": {"family": "Helvetica, Arial, sans-serif", "size": 13, "color": "#1b1d21"},
    "width": _WIDTH,
}
_GRID = {"gridcolor": "#e1e4e8"}


def write_markdown(runs: Runs, path: Path) -> None:
    """Write one run's tables, or those of several runs side by side, as Markdown.

    Raises:
        SafetyNeuronsError: the disk failed.
    """
    private = any(results.shows_responses for results in runs.values())
    if len(runs) > 1:
        evaluations = [results.evaluation for results in runs.values() if results.evaluation]
        notes = [note for one in evaluations for note in evaluation_tables.evaluation_notes(one)]
        write_text(path, markdown(comparison_tables(runs), list(dict.fromkeys(notes))), private=private)
        return
    (results,) = runs.values()
    found = tables_of(results, *PARTS)
    notes = [*run_tables.introduction(results), *found.notes]
    write_text(path, markdown(found.tables, notes, results.run.command), private=private)


def evaluation_markdown(found: Evaluation, command: str = "") -> str:
    """The tables of an evaluation and their notes."""
    return markdown(evaluation_tables.evaluation_tables(found), evaluation_tables.evaluation_notes(found), command)


def audit_markdown(found: Audit) -> str:
    """The verdict and the tables of an audit, for a pull request."""
    return markdown(audit_tables.audit_tables(found), audit_tables.audit_notes(found), found.command)


def scores_markdown(results: Mapping[str, Any]) -> str:
    """The tables of a comparison of scores and their notes."""
    tables = [*experiment_tables.scores(results), experiment_tables.formulas(results)]
    return markdown(tables, experiment_tables.score_notes(results), results["command"])


def write_figures(results: RunResults, folder: Path) -> list[Path]:
    """Write every figure of a run as PNG and SVG, on white paper; returns the files.

    Raises:
        SafetyNeuronsError: Kaleido or Chrome is missing, or the disk failed.
    """
    if importlib.util.find_spec("kaleido") is None:
        raise SafetyNeuronsError(
            "Writing figures as files needs Kaleido, which is not installed: pip install 'safety-neurons[figures]'. It "
            "also needs Chrome or Chromium."
        )
    drawn = [*run_charts(results).values(), *run_figures.grids(results)]
    pairs = [(figure, f"{figure.name}.{kind}") for figure in drawn for kind in ("png", "svg")]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        # Drawn elsewhere, so that no half of a figure takes the place of another.
        with temporary_path(folder / "figures") as temporary:
            temporary.mkdir()
            _draw(pairs, temporary)
            for _, name in pairs:
                with atomic_path(folder / name) as path:
                    (temporary / name).replace(path)
    return [folder / name for _, name in pairs]


def _draw(pairs: Sequence[tuple[Figure, str]], folder: Path) -> None:
    """Draw each figure in the file of its name in a folder."""
    paths = [folder / name for _, name in pairs]
    try:
        plotly.io.write_images(
            fig=[_on_paper(figure.specification) for figure, _ in pairs],
            file=paths,
            width=_WIDTH,
            height=[figure.height for figure, _ in pairs],
            scale=[2 if path.suffix == ".png" else 1 for path in paths],
        )
    except RuntimeError as error:
        raise SafetyNeuronsError(
            f"Kaleido could not draw the figures: {' '.join(str(error).split())} It needs Chrome or Chromium. If it "
            "does not find the browser, set BROWSER_PATH to its path."
        ) from error
    if lost := [path.name for path in paths if not path.exists()]:
        raise SafetyNeuronsError(
            f"Kaleido did not write {', '.join(lost[:5])}. Try again; if it fails again, check that Chrome starts."
        )


def _on_paper(specification: dict[str, Any]) -> dict[str, Any]:
    """The figure with the colors that the page's style sheet gives it on screen."""
    layout = specification["layout"] | _PAPER
    layout |= {name: axis | _GRID for name, axis in layout.items() if name.startswith(("xaxis", "yaxis"))}
    return {"data": specification["data"], "layout": layout}


def model_card(delta: "NeuronDelta", results: RunResults | None = None, command: str = "") -> str:
    """The card of a merged model as Markdown: what was tuned, on what, with which settings, and what was measured.

    Args:
        results: the run's results; without them the card says only what was tuned.
        command: the command that merged the model.

    Raises:
        SafetyNeuronsError: the results are of another model than the delta.
    """
    provenance = delta.neurons.provenance
    if results is not None and (measured := results.run.model).identity != provenance.identity:
        raise SafetyNeuronsError(
            f"The delta is of {provenance.model} ({provenance.identity[:12]}), and the results are of "
            f"{measured.name or 'an unknown model'} ({measured.identity[:12] or '?'}). Give the results of the run "
            "that made the delta."
        )
    preset = PRESETS.get(provenance.model)
    lines = summary.before_after(results.evaluation) if results else []
    environment = Environment(
        loader=PackageLoader("safety_neurons.report", ""),
        autoescape=False,
        # Whatever the template shows and is not Markdown yet becomes inert text.
        finalize=lambda value: value if isinstance(value, Markdown | Undefined) else escaped(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"count": text.count, "share": text.share, "code": code_line}
    return environment.get_template("card.md.j2").render(
        delta=delta,
        neurons=delta.neurons,
        provenance=provenance,
        hub_id=Markdown(preset.hub_id) if preset else None,
        rejection=sum(map(len, delta.neurons.rejection)),
        conformity=sum(map(len, delta.neurons.conformity)),
        share=delta.parameters / provenance.parameters_total,
        corpus=results.training.corpus if results and results.training else {},
        settings=_settings(results.run.settings) if results else {},
        prompts=results.run.prompts if results else {},
        versions=results.run.versions if results else {},
        missed=summary.missed_margin(results) if results else "",
        measured=markdown([run_tables.before_after(results)]) if results and lines else None,
        commands=[line for line in (results and results.run.command, command) if line],
    )


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the tuned weights and the results depend on, where they are set, by their dotted names."""
    named = {name: settings.get(name) for name in ("adapter", "seed", "dtype", "quantize", "system", "thinking")}
    for section in ("find", "calibrate", "tune", "evaluate"):
        named |= {f"{section}.{name}": value for name, value in (settings.get(section) or {}).items()}
    return {name: value for name, value in named.items() if value is not None}
