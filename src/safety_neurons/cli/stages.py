"""The commands that bring a run up to date: everything, or one stage."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from safety_neurons.cli.app import (
    DEFAULT_OUT,
    Count,
    RunFolderArgument,
    SettingsArgument,
    app,
    command_line,
    given_settings,
    print_where,
    run_until,
)
from safety_neurons.cli.console import ConsoleListener, console, print_tables
from safety_neurons.core.errors import SafetyNeuronsError

if TYPE_CHECKING:
    from safety_neurons.report import RunResults


@app.command
def run(*, settings: SettingsArgument = None, out: RunFolderArgument = DEFAULT_OUT, config: Path | None = None) -> None:
    """All stages: find, explain, calibrate, tune, evaluate, report. What is done already is not redone.

    Options that are not given are taken from the folder's own record, where there is one.

    Parameters
    ----------
    config
        A TOML file with the same fields as the options.
    """
    run_until(out, settings, config, "report")


def _stage_command(stage: str, text: str) -> None:
    def command(run_dir: RunFolderArgument, *, settings: SettingsArgument = None, config: Path | None = None) -> None:
        run_until(run_dir, settings, config, stage)

    command.__doc__ = f"{text}\n\nStages that it needs are run first where they are missing."
    app.command(command, name=stage)


_stage_command("find", "Find the safety neurons.")
_stage_command("explain", "Say in words what the neurons promote.")


@app.command
def tune(
    run_dir: RunFolderArgument,
    *,
    auto: bool = False,
    trials: Count | None = None,
    max_over_refusal: float | None = None,
    scores: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    settings: SettingsArgument = None,
    config: Path | None = None,
) -> None:
    """Fine-tune only the safety neurons on the model's own refusals and benign answers.

    With --auto, score, budget, learning rate and the corpus' mix are searched on the run's validation prompts for the
    Pareto front of attack success, over-refusal and divergence; the run is then tuned with the front's knee, or with
    what keeps to --max-over-refusal. A killed search goes on where it stopped.
    Stages that it needs are run first where they are missing.

    Examples:

        safety-neurons tune runs/demo --tune.learning-rate 5e-4
        safety-neurons tune runs/demo --tune.corpus my-pairs.jsonl
        safety-neurons tune runs/demo --auto --max-over-refusal 0.02

    Parameters
    ----------
    auto
        Search the settings instead of taking the run's own.
    trials
        How many settings are tried, with --auto; 12 when left out. The first are the run's own.
    max_over_refusal
        The largest share of safe validation requests that tuning may stop the model from answering, with --auto.
    scores
        Which neuron scores are tried, with --auto; gradient and write-contrast when left out.
    config
        A TOML file with the same fields as the options.
    """
    if not auto:
        if any(option is not None for option in (trials, max_over_refusal, scores)):
            raise SafetyNeuronsError("--trials, --max-over-refusal and --scores say how to search: add --auto.")
        run_until(run_dir, settings, config, "tune")
        return
    from safety_neurons.experiments.auto_tune import SCORES, TRIALS, Space, auto_tune
    from safety_neurons.report import RunResults, tables_of

    with ConsoleListener() as listener:
        results = auto_tune(
            run_dir,
            given_settings(settings, config),
            trials=trials or TRIALS,
            space=Space(tuple(scores or SCORES)),
            max_over_refusal=max_over_refusal,
            listener=listener,
            command=command_line(),
        )
    print_tables(*tables_of(RunResults.of(results), "auto"))
    print_where(run_dir)


@app.command
def report(
    run_dirs: Annotated[list[Path], Parameter(help="A run's folder, or several to put side by side.")],
    *,
    out: Path | None = None,
    format: Literal["html", "md"] = "html",
    figures: Path | None = None,
) -> None:
    """Write report.html again from what the run has so far; or several runs side by side, or tables, or figures.

    Examples:

        safety-neurons report runs/demo
        safety-neurons report runs/demo runs/other --out comparison.html
        safety-neurons report runs/demo --format md     tables for a paper or a pull request
        safety-neurons report runs/demo --figures figures

    Parameters
    ----------
    out
        The file. When left out: report.html in the run's folder, or comparison.html beside the first of several runs.
    format
        html is the page; md are its tables as Markdown.
    figures
        A folder for every figure as PNG and SVG besides; needs the extra `figures`, and Chrome or Chromium.
    """
    from safety_neurons.report.comparison import names
    from safety_neurons.report.exports import write_figures, write_markdown
    from safety_neurons.report.page import write_comparison, write_report

    runs = dict(zip(names(run_dirs), map(_results, run_dirs), strict=True))
    first, *_ = runs
    if out is None:
        out = run_dirs[0] / f"report.{format}" if len(runs) == 1 else run_dirs[0].parent / f"comparison.{format}"
    if format == "md":
        write_markdown(runs, out)
    elif len(runs) > 1:
        write_comparison(runs, out)
    else:
        write_report(runs[first], out)
    console.print(f"Report: {out}", soft_wrap=True)
    if figures is None:
        return
    for name, results in runs.items():
        folder = figures if len(runs) == 1 else figures / name
        console.print(f"Figures: {len(write_figures(results, folder))} files in {folder}", soft_wrap=True)


def _results(run_dir: Path) -> "RunResults":
    from safety_neurons.core.files import read_json
    from safety_neurons.report import RunResults
    from safety_neurons.runs.folder import RunFolder

    folder = RunFolder(run_dir)
    if not folder.results.exists():
        raise SafetyNeuronsError(f"{run_dir} holds no results yet. Run `safety-neurons run --out {run_dir}` first.")
    return RunResults.of(read_json(folder.results))
