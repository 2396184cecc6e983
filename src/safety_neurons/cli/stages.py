"""The commands that bring a run up to date: everything, one stage, the guard, or the report."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from safety_neurons.cli.app import (
    ConfigArgument,
    Count,
    ProfileArgument,
    RunFolderArgument,
    SettingsArgument,
    app,
    check_written,
    perform,
    print_results,
    print_where,
    shows,
)
from safety_neurons.cli.console import print_line
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.settings import Profile, Settings

if TYPE_CHECKING:
    from safety_neurons.report import Part, RunResults

GENERAL = ("model", "harmful", "benign", "seed", "device")


@app.command(
    **shows(
        *(*GENERAL, "data_dir", "quantize", "batch_size", "show_responses", "find.score", "find.percent"),
        *("calibrate.alpha_rejection", "tune.corpus", "tune.learning_rate", "tune.epochs"),
        *("evaluate.attacks", "evaluate.prompts"),
    )
)
def run(
    *,
    out: RunFolderArgument = Path("runs/demo"),
    profile: ProfileArgument = None,
    config: ConfigArgument = None,
    settings: SettingsArgument = None,
) -> None:
    """Run all stages: find, explain, calibrate, tune, evaluate, report. Finished stages are not repeated.

    Options that are not given are taken from the folder's record, if it has one.

    For example:

        safety-neurons run
        safety-neurons run --profile quick
        safety-neurons run --profile paper --model vicuna-7b-v1.5 --out runs/paper
        safety-neurons run --model qwen3-0.6b --out runs/qwen3 --seed 1
        safety-neurons run --harmful advbench --benign alpaca --data-dir my-copies
    """
    _run_until("report", out, settings, config, profile)


def _run_until(
    stage: str, out: Path, settings: Settings | None, config: Path | None, profile: Profile | None = None
) -> None:
    from safety_neurons.runs.pipeline import run

    results = perform(run, out, settings=settings, config=config, profile=profile, until=stage)
    parts: dict[str, tuple[Part, ...]] = {
        "calibrate": ("calibration",),
        "tune": ("selection",),
        "evaluate": ("before_after", "evaluation"),
        "report": ("calibration", "before_after"),
    }
    print_results(results, out if stage == "report" else None, *parts.get(stage, ()))


def _stage_command(stage: str, text: str, example: str, *shown: str) -> None:
    def command(
        run_dir: RunFolderArgument, *, config: ConfigArgument = None, settings: SettingsArgument = None
    ) -> None:
        _run_until(stage, run_dir, settings, config)

    command.__doc__ = (
        f"{text}\n\nRuns missing prerequisite stages first.\n\nFor example:\n\n    safety-neurons {stage} runs/demo"
        f"\n    safety-neurons {stage} runs/demo {example}"
    )
    app.command(command, name=stage, **shows(*GENERAL, *shown))


_stage_command("find", "Find the safety neurons.", "--find.score write-contrast --find.percent 0.5", "find")
_stage_command(
    "explain",
    "Read the words that the neurons promote and suppress.",
    "--explain.words 20 --explain.random-sets 0",
    *("explain", "find.score", "find.percent"),
)
_stage_command(
    "calibrate",
    "Test that the neurons cause refusals: move their activations, and those of random neurons.",
    "--calibrate.alpha-rejection 2 --calibrate.generated-tokens 4",
    *("calibrate", "find.score", "find.percent"),
)


@app.command(**shows("tune", "seed", "device", "quantize"))
def tune(
    run_dir: RunFolderArgument,
    *,
    auto: bool = False,
    trials: Count | None = None,
    scores: list[str] | None = None,
    config: ConfigArgument = None,
    settings: SettingsArgument = None,
) -> None:
    """Fine-tune only the safety neurons on the model's own refusals and benign answers.

    Then select, on validation prompts, the pass over the corpus and the scale of the change: the least attack success
    with no set of safe prompts refused more than before plus --tune.max-over-refusal.

    With --auto, the score, the budget, the learning rate and the mix of the corpus are searched on the run's validation
    prompts. The run is then tuned with the settings of the trial that has the least attack success within
    --tune.max-over-refusal. An interrupted search resumes.
    Runs missing prerequisite stages first.

    For example:

        safety-neurons tune runs/demo --tune.learning-rate 5e-4
        safety-neurons tune runs/demo --tune.corpus my-pairs.jsonl
        safety-neurons tune runs/demo --tune.max-over-refusal 0.01
        safety-neurons tune runs/demo --auto --trials 6

    Parameters
    ----------
    auto
        Search the settings instead of using the run's own.
    trials
        Number of trials with --auto; the first has the run's own settings. Default: 12.
    scores
        Neuron scores to try with --auto. Default: gradient and write-contrast.
    """
    if not auto:
        if any(option is not None for option in (trials, scores)):
            raise SafetyNeuronsError("--trials and --scores configure the search: add --auto.")
        _run_until("tune", run_dir, settings, config)
        return
    from safety_neurons.experiments.auto_tune import SCORES, TRIALS, Space, auto_tune

    results = perform(
        auto_tune,
        run_dir,
        settings=settings,
        config=config,
        trials=trials or TRIALS,
        space=Space(tuple(scores or SCORES)),
    )
    print_results(results, run_dir, "auto")


@app.command(**shows("guard", "find.score", "calibrate.prompt_positions", "data_dir", "seed", "device"))
def guard(
    run_dir: RunFolderArgument,
    *,
    on: list[str] | None = None,
    answers: bool = True,
    config: ConfigArgument = None,
    settings: SettingsArgument = None,
) -> None:
    """Fit and test a guard: calibrate toward rejection only when the neurons classify the prompt as harmful.

    The guard has its own, smaller set of neurons (guard.percent). The folder gets guard.safetensors. In Python:
    `with sn.guard(model, sn.Guard.load(path)): model.generate(...)`.

    For example:

        safety-neurons guard runs/demo
        safety-neurons guard runs/demo --guard.false-positive-rate 0.05 --on jailbreakbench:alpaca
        safety-neurons guard runs/demo --on my-attacks.jsonl:alpaca --no-answers --guard.alpha 3

    Parameters
    ----------
    on
        Further HARMFUL:BENIGN pairs of prompt sets to test on.
    answers
        Let the guarded model answer the test prompts too, instead of only measuring what would be flagged.
    """
    from safety_neurons.experiments.guard_test import guard_run

    results = perform(guard_run, run_dir, settings=settings, config=config, on=on or (), answers=answers)
    print_results(results, None, "guard")
    print_line(f"Guard: {run_dir / 'guard.safetensors'}")
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

    For example:

        safety-neurons report runs/demo
        safety-neurons report runs/demo runs/other --out comparison.html
        safety-neurons report runs/demo --format md     tables for a paper or a pull request
        safety-neurons report runs/demo --figures figures

    Parameters
    ----------
    out
        The file. Default: report.html in the run's folder, or comparison.html next to the first of several runs.
    format
        html: the page. md: its tables as Markdown.
    figures
        A folder for every figure as PNG and SVG; needs the extra `figures`, and Chrome or Chromium.
    """
    from safety_neurons.report.comparison import names
    from safety_neurons.report.exports import write_figures, write_markdown
    from safety_neurons.report.page import write_comparison, write_report

    if out is None:
        alone = len(run_dirs) == 1
        out = run_dirs[0] / f"report.{format}" if alone else run_dirs[0].parent / f"comparison.{format}"
    with _page_of(run_dirs, out):
        runs = dict(zip(names(run_dirs), map(_results, run_dirs), strict=True))
        if format == "md":
            write_markdown(runs, out)
        elif len(runs) > 1:
            write_comparison(runs, out)
        else:
            (results,) = runs.values()
            write_report(results, out)
    check_written(out)
    print_line(f"Report: {out}")
    if figures is None:
        return
    for name, results in runs.items():
        folder = figures if len(runs) == 1 else figures / name
        paths = write_figures(results, folder)
        check_written(*paths)
        print_line(f"Figures: {len(paths)} files in {folder}")


@contextlib.contextmanager
def _page_of(run_dirs: list[Path], out: Path) -> Iterator[None]:
    """Hold the lock of the run whose own page is written, so that it does not become older than the run."""
    from safety_neurons.runs.folder import RunFolder

    advice = "It writes report.html when it ends. To see what it has so far, name another file (--out)."
    with contextlib.ExitStack() as stack:
        for folder in map(RunFolder, run_dirs):
            own = os.path.realpath(folder.report) == os.path.realpath(out)
            if own and folder.record_file.name in folder.check():
                stack.enter_context(folder.held(advice))
        yield


def _results(run_dir: Path) -> "RunResults":

    from safety_neurons.report.results import read_results
    from safety_neurons.runs.folder import RunFolder

    folder = RunFolder(run_dir)
    if folder.results.name not in folder.check():
        # Says what leads on where there is no run.
        folder.whole_record()
        raise SafetyNeuronsError(f"{run_dir} has no results yet. Run it first: {folder.command}")
    return read_results(folder.results)
