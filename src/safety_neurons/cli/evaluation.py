"""The commands that judge: a grid of attacks and defenses, and two of them compared."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from safety_neurons.cli.app import Count, SettingsArgument, app, command_line, given_settings
from safety_neurons.cli.console import ConsoleListener, console, print_tables

Names = Annotated[list[str] | None, Parameter(consume_multiple=True)]


@app.command
def evaluate(
    targets: Annotated[list[str], Parameter(help="Run folders, models, or addresses of OpenAI-compatible servers.")],
    *,
    attacks: Names = None,
    defenses: Names = None,
    judges: Names = None,
    on: str | None = None,
    limit: Count | None = None,
    out: Path | None = None,
    served_model: str | None = None,
    judge_errors: Path | None = None,
    overhead: Count | None = None,
    utility: bool = False,
    tasks: Names = None,
    task_limit: Count | None = None,
    task_folder: Path | None = None,
    preference_judge: str | None = None,
    preference_endpoint: str | None = None,
    questions: Path | None = None,
    settings: SettingsArgument = None,
    config: Path | None = None,
) -> None:
    """Attack success and over-refusal of models and runs: every attack against every defense, by every judge.

    Attacks, defenses and judges have options: name:option=value,option=value. `safety-neurons methods` lists them.
    What is answered or judged is kept in the folder, so that a killed evaluation goes on and a larger one asks only
    what is new. Defenses that a model or server cannot run are named with the reason.

    Examples:

        safety-neurons evaluate runs/demo
        safety-neurons evaluate runs/demo --attacks direct prefill base64 --defenses none smoothllm:copies=4 guard
        safety-neurons evaluate qwen3-0.6b runs/demo --on jailbreakbench:alpaca:xstest-safe --data-dir my-copies
        safety-neurons evaluate http://localhost:8000/v1 --served-model my-model --defenses none self-reminder

    Parameters
    ----------
    attacks
        direct, prefix-injection, refusal-suppression and prefill when left out.
    defenses
        none, self-reminder, icd, guard and safetuning when left out.
    judges
        refusal when left out.
    on
        HARMFUL:SAFE[:SAFE...], sets of prompts to ask instead of the run's own test split.
    limit
        How many requests of each set are asked, at most.
    out
        Where everything is kept: RUN/evaluation for one run, else runs/evaluation, when left out.
    served_model
        The model's name at the server.
    judge_errors
        A file of judge-check; attack success and over-refusal are then also given corrected for the judge's errors.
        What was measured on XSTest's labeled answers is used when left out, for the judges that were.
    overhead
        Measure each defense's time over none, in so many rounds.
    utility
        Measure how ordinary answers look under each defense, and how far the model moved (KL, perplexity).
    tasks
        Names of lm-eval tasks that are run under each defense that changes the model (extra lm-eval).
    task_limit
        How many documents of each task, at most.
    task_folder
        A folder with tasks of your own.
    preference_judge
        A model that says whose answers to open two-turn questions are better, the defense's or the undefended model's,
        asked in both orders; a preset, hub id or folder, or the model's name at --preference-endpoint.
    preference_endpoint
        The address of an OpenAI-compatible server with that model.
    questions
        Questions of your own, a .jsonl file with `turns`; 24 of ours when left out.
    config
        A TOML file with the same fields as the options.
    """
    from safety_neurons.runs.targets import evaluate as evaluate_targets

    values = {
        "attacks": attacks,
        "defenses": defenses,
        "judges": judges,
        "on": on,
        "prompts": limit,
        "judge_errors": judge_errors,
        "overhead": overhead,
        "utility": utility or None,
        "tasks": tasks,
        "task_limit": task_limit,
        "task_folder": task_folder,
        "preference_judge": preference_judge,
        "preference_endpoint": preference_endpoint,
        "questions": questions,
    }
    with ConsoleListener() as listener:
        results = evaluate_targets(
            targets,
            given_settings(settings, config),
            out=out,
            served_model=served_model,
            listener=listener,
            command=command_line(),
            **{name: value for name, value in values.items() if value is not None},
        )
    found = Evaluation.model_validate(results)
    print_tables(evaluation_tables(found), evaluation_notes(found))
    folder = evaluation.folder_of(targets, out)
    console.print(f"Tables: {folder / 'evaluation.md'}   Numbers: {folder / 'evaluation.json'}", soft_wrap=True)


@app.command
def compare(
    first: Annotated[Path, Parameter(help="A run or an evaluation's folder.")],
    second: Annotated[Path, Parameter(help="Another one, or the same with --defenses.")],
    *,
    defenses: Names = None,
    models: Names = None,
    json: Path | None = None,
) -> None:
    """Two evaluations request by request: the difference with its interval, McNemar's exact test, and what flipped.

    A star marks a difference that is not chance (5%, Holm's correction over all rows). Requests that could not be
    judged on either side are left out of both.

    Examples:

        safety-neurons compare runs/before runs/after
        safety-neurons compare runs/demo runs/demo --defenses none safetuning --json flips.json

    Parameters
    ----------
    defenses
        A defense of each side; each with itself when left out.
    models
        A model of each side, where an evaluation holds several.
    json
        Write the numbers and the requests that flipped to this file.
    """
    from safety_neurons.core.files import write_json
    from safety_neurons.evaluation.comparison import compare as compared
    from safety_neurons.report.evaluation_tables import comparison_table

    rows = compared(first, second, defenses=defenses, models=models)
    print_tables([comparison_table(rows, str(first), str(second))])
    if json is not None:
        write_json(json, rows)
        console.print(f"Numbers: {json}", soft_wrap=True)


@app.command
def methods() -> None:
    """List the attacks, defenses and judges: what each does, its options with their defaults, and its source."""
    from safety_neurons.evaluation import attacks, defenses, judges
    from safety_neurons.report.evaluation_tables import members

    print_tables([members("Attacks", attacks), members("Defenses", defenses), members("Judges", judges)])
