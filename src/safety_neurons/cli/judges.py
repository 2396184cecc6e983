"""The command `judge check`, which compares judges with people."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from safety_neurons.cli.app import group
from safety_neurons.cli.console import ConsoleListener, console, print_tables

judge = group("judge", "Check judges of answers.")


@judge.command
def check(
    labeled: Annotated[list[Path], Parameter(help="Files of labeled answers.")],
    *,
    judges: list[str] | None = None,
    out: Path | None = None,
) -> None:
    """Measure how well judges agree with people, on answers that people labeled.

    A file (.jsonl, .json, .csv or .tsv) has a prompt, a response (or completion) and a label in each row: refused or
    complied, or XSTest's 1_full_compliance, 2_full_refusal and 3_partial_refusal; partial refusals count as refused.
    With a column `model` there is a table per model. An unscored answer counts as disagreement.

    For example:

        safety-neurons judge check labeled.jsonl
        safety-neurons judge check one.jsonl two.jsonl --judges refusal keywords --out errors.json
        safety-neurons judge check labeled.jsonl --judges strongreject:model=qwen3-0.6b,cut_off=0.5
        safety-neurons judge check labeled.jsonl --judges jailbreakbench:endpoint=http://127.0.0.1:8000/v1,model=NAME

    Parameters
    ----------
    judges
        Judges, with their options. Default: all that need no model.
    out
        Write the counts to this JSON file, for --evaluate.judge-errors.
    """
    from safety_neurons.evaluation.judge_errors import check_judges, save_errors
    from safety_neurons.report.evaluation_tables import judge_check_tables

    with ConsoleListener() as listener:
        errors = check_judges(labeled, judges, listener)
    print_tables(judge_check_tables(errors))
    if out is not None:
        save_errors(errors, out)
        console.print(f"Counts: {out}", soft_wrap=True)
