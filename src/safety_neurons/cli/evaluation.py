"""The commands `evaluate`, `compare` and `judge check`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from safety_neurons.cli.app import (
    ConfigArgument,
    SettingsArgument,
    app,
    check_written,
    group,
    perform,
    print_where,
    shows,
)
from safety_neurons.cli.console import ConsoleListener, print_line, print_tables


@app.command(**shows("evaluate", "data_dir", "seed", "device", "quantize", "batch_size", "show_responses"))
def evaluate(
    targets: Annotated[list[str], Parameter(help="Run folders, models, or URLs of OpenAI-compatible servers.")],
    *,
    out: Path | None = None,
    served_model: str | None = None,
    config: ConfigArgument = None,
    settings: SettingsArgument = None,
) -> None:
    """Measure attack success and over-refusal: every attack against every defense, by every judge.

    Attacks, defenses and judges can have options: name:option=value,option=value (see `safety-neurons list attacks`).
    Your own are named as path/to/file.py:NAME. Answers and verdicts are cached in the folder: an interrupted evaluation
    resumes, and a larger one asks only what is new. Defenses that a model or server cannot run are listed with the
    reason.

    For example:

        safety-neurons evaluate runs/demo
        safety-neurons evaluate runs/demo --evaluate.attacks direct base64 --evaluate.defenses none smoothllm:copies=4
        safety-neurons evaluate qwen3-0.6b runs/demo --evaluate.on jailbreakbench:alpaca --data-dir my-copies
        safety-neurons evaluate http://localhost:8000/v1 --served-model my-model --evaluate.defenses none self-reminder

    Parameters
    ----------
    out
        Folder for everything. Default: the run's own folder for a single run, else runs/evaluation.
    served_model
        The model's name at the server.
    """
    from safety_neurons.report.evaluation_tables import evaluation_notes, evaluation_tables
    from safety_neurons.runs.targets import OUT, evaluate, is_single_run

    results = perform(evaluate, targets, settings=settings, config=config, out=out, served_model=served_model)
    print_tables(evaluation_tables(results), evaluation_notes(results))
    if is_single_run(targets, out):
        print_where(Path(targets[0]))
    else:
        folder = out or OUT
        print_line(f"Tables: {folder / 'evaluation.md'}   Numbers: {folder / 'evaluation.json'}")


@app.command
def compare(
    first: Annotated[Path, Parameter(help="A folder of a run or an evaluation.")],
    second: Annotated[Path, Parameter(help="Another one, or the same with --defenses.")],
    *,
    defenses: list[str] | None = None,
    models: list[str] | None = None,
    json: Path | None = None,
) -> None:
    """Compare two evaluations request by request: difference with interval, McNemar's exact test, changed verdicts.

    A star marks a significant difference (5%, Holm's correction over all rows). Requests that could not be judged in
    one of the two are excluded.

    For example:

        safety-neurons compare runs/before runs/after
        safety-neurons compare runs/demo runs/demo --defenses none safetuning --json flips.json

    Parameters
    ----------
    defenses
        One defense for each side. Default: each defense with itself.
    models
        One model for each side, if an evaluation has several.
    json
        Write the numbers and the changed requests to this file.
    """
    from safety_neurons.core.files import write_json
    from safety_neurons.evaluation.comparison import compare as compared
    from safety_neurons.report.evaluation_tables import comparison_table

    rows = compared(first, second, defenses=defenses, models=models)
    print_tables([comparison_table(rows, str(first), str(second))])
    if json is not None:
        write_json(json, rows)
        check_written(json)
        print_line(f"Numbers: {json}")


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
    Yes and no (1 and 0, true and false) are labels in a column named after one, such as `refused` or `jailbroken`.
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
        check_written(out)
        print_line(f"Counts: {out}")
