"""The command `audit`."""

import functools
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from safety_neurons.cli.app import ConfigArgument, SettingsArgument, app, check_written, perform, shows
from safety_neurons.cli.console import flush, print_line, print_tables


@app.command(
    **shows(
        *("evaluate.attacks", "evaluate.judges", "evaluate.prompts", "data_dir", "seed", "device", "quantize"),
        *("batch_size", "show_responses"),
    )
)
def audit(
    base: Annotated[str, Parameter(help="The model before fine-tuning: a preset, hub id, folder or .gguf file.")],
    tuned: Annotated[str, Parameter(help="The model after it, likewise; or the folder of a PEFT adapter.")],
    *,
    task: Path | None = None,
    on: str | None = None,
    thresholds: Path | None = None,
    out: Path = Path("runs/audit"),
    config: ConfigArgument = None,
    settings: SettingsArgument = None,
) -> None:
    """Check whether a fine-tuned model lost the safety of its base: a verdict with intervals, for release pipelines.

    Both models are asked the same, and every difference is paired by request: refusals under each attack,
    over-refusal, broken answers, KL on ordinary requests, and the task. The exit status is 0 for PASS and WARN, 1 for
    BLOCK, 3 for UNDERPOWERED (the intervals could hide a loss that matters), and 2 for bad input. An interrupted audit
    resumes, and the next fine-tune of the same base, audited in the same folder, asks the base nothing again.

    For example:

        safety-neurons audit qwen2.5-coder-0.5b my-fine-tune
        safety-neurons audit qwen2.5-coder-0.5b my-adapter --task my-task.jsonl --out runs/release
        safety-neurons audit base-folder tuned.gguf --on jailbreakbench:alpaca:xstest-safe --data-dir my-copies
        safety-neurons audit base-folder tuned-folder --thresholds thresholds.toml --evaluate.prompts 180

    Parameters
    ----------
    task
        File of examples of the task (prompt and response): the likelihood of the responses, and exact match where they
        end in a number as GSM8K's do.
    on
        HARMFUL:SAFE[:SAFE...], prompt sets to ask. Default: the test split of the bundled ones.
    thresholds
        TOML file of the changes that matter.
    out
        Folder for everything: a run of the base.
    """
    from safety_neurons.audits.audit import audit as audited
    from safety_neurons.audits.verdict import EXIT_STATUS
    from safety_neurons.report.audit_tables import audit_notes, audit_tables

    # Left out, it is what the settings or the folder say.
    asked = audited if on is None else functools.partial(audited, on=on)
    found = perform(asked, base, tuned, settings=settings, config=config, task=task, thresholds=thresholds, out=out)
    print_tables(audit_tables(found), audit_notes(found))
    paths = [out / name for name in ("audit.json", "audit.md", "audit.xml")]
    check_written(*paths)
    print_line(f"Numbers: {paths[0]}   Pull request: {paths[1]}   JUnit: {paths[2]}   Report: {out / 'report.html'}")
    flush()
    sys.exit(EXIT_STATUS[found.verdict])
