"""The commands that bring a run up to date: everything, or one stage."""

from pathlib import Path

from safety_neurons.cli.app import DEFAULT_OUT, RunFolderArgument, SettingsArgument, app, run_until
from safety_neurons.console import console
from safety_neurons.errors import SafetyNeuronsError


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
_stage_command("tune", "Fine-tune only the safety neurons on the model's own refusals and benign answers.")
_stage_command("evaluate", "Attack success and over-refusal, before and after tuning.")


@app.command
def report(run_dir: RunFolderArgument) -> None:
    """Write report.html again from what the run has so far."""
    from safety_neurons.report import write_report
    from safety_neurons.run.folder import RunFolder
    from safety_neurons.storage import read_json

    folder = RunFolder(run_dir)
    if not folder.results.exists():
        raise SafetyNeuronsError(f"{run_dir} holds no results yet. Run `safety-neurons run --out {run_dir}` first.")
    write_report(read_json(folder.results), folder.report)
    console.print(f"Report: {folder.report}", soft_wrap=True)
