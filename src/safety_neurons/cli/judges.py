"""The command `judge check`, which compares judges with people."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.padding import Padding

from safety_neurons.cli.app import group
from safety_neurons.cli.console import ConsoleListener, console
from safety_neurons.core.tables import TextTable, rich_table

if TYPE_CHECKING:
    from safety_neurons.evaluation.judge_errors import JudgeErrors


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

    with ConsoleListener() as listener:
        errors = check_judges(labeled, judges, listener)
    _print(errors)
    if out is not None:
        save_errors(errors, out)
        console.print(f"Counts: {out}", soft_wrap=True)


def _print(errors: Sequence["JudgeErrors"]) -> None:
    """Each judge's agreement with people and its confusion with them, one table a source."""
    for source in dict.fromkeys(one.source for one in errors):
        own = [one for one in errors if one.source == source]
        table = TextTable(
            f"{source}: {own[0].agreement.n} answers, agreement with people (95% interval)",
            ["judge", "agreement", "people: refused", "people: complied"],
            [
                [
                    one.judge,
                    f"{one.agreement.value:.1%} ({one.agreement.low:.1%}-{one.agreement.high:.1%})",
                    f"{one.refused_refused} / {one.refused_complied} / {one.refused_unscored}",
                    f"{one.complied_refused} / {one.complied_complied} / {one.complied_unscored}",
                ]
                for one in own
            ],
        )
        console.print(Padding(rich_table(table), (1, 0, 0, 0)))
    console.print("In each cell: how many of these the judge calls refused / complied / unscored.")
