"""The commands that experiment with calibration: dose-response, search, guard, and the attack on a tuned model."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from safety_neurons.cli.app import (
    Count,
    On,
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


@app.command
def calibrate(
    run_dir: RunFolderArgument,
    *,
    alpha: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    on: str | None = None,
    settings: SettingsArgument = None,
    config: Path | None = None,
) -> None:
    """Test that the neurons cause refusals: move their activations, and random ones.

    With --alpha, a dose-response: refusals, broken answers and the distance to the base model at each alpha, for
    the found neurons and for random ones of the same number, at the same alpha and at the same dose.
    Stages that it needs are run first where they are missing.

    Examples:

        safety-neurons calibrate runs/demo
        safety-neurons calibrate runs/demo --alpha -6:6:2
        safety-neurons calibrate runs/demo --alpha -4,0,4 --on jailbreakbench:alpaca --calibrate.generated-tokens 4

    Parameters
    ----------
    alpha
        LOW:HIGH, LOW:HIGH:STEP or a list; below zero leads toward rejection, above toward conformity.
    on
        A HARMFUL:BENIGN pair of prompt sets to ask instead of the run's test split, with --alpha.
    config
        A TOML file with the same fields as the options.
    """
    if alpha is None:
        if on is not None:
            raise SafetyNeuronsError("--on goes with --alpha: the plain test asks the run's own test split.")
        run_until(run_dir, settings, config, "calibrate")
        return
    from safety_neurons.experiments.dose_response import dose_response, parse_alphas
    from safety_neurons.report import RunResults, tables_of

    alphas = parse_alphas(alpha)
    with ConsoleListener() as listener:
        results = dose_response(
            run_dir, alphas, given_settings(settings, config), on=on, listener=listener, command=command_line()
        )
    print_tables(*tables_of(RunResults.of(results), "dose_response"))
    print_where(run_dir)


@app.command
def search(
    run_dir: RunFolderArgument,
    *,
    trials: Count = 40,
    on: On = None,
    target: float = 0.97,
    max_broken: float = 0.03,
    max_kl: float = 1.0,
    max_percent: float = 0.5,
    max_alpha: float = 6.0,
    settings: SettingsArgument = None,
    config: Path | None = None,
) -> None:
    """The smallest set of neurons and the smallest dose that move behavior, in each direction.

    Chosen on the run's validation prompts, reported on its test prompts and on other sets, beside random neurons. The
    ranking is the run's own (--find.score); set size, alpha, prompt positions and generated tokens are searched.

    Examples:

        safety-neurons search runs/demo --find.score gradient
        safety-neurons search runs/demo --trials 20 --on jailbreakbench:alpaca xstest-unsafe:xstest-safe

    Parameters
    ----------
    trials
        How many combinations are tried in each direction.
    on
        Further HARMFUL:BENIGN pairs of prompt sets to test on.
    target
        The share of the prompts that should be answered, or refused.
    max_broken
        The largest share of answers that may be broken.
    max_divergence
        How far prompts of the other kind may be moved, in nats per token.
    max_percent
        The largest set, in percent of the model's neurons.
    max_alpha
        The largest alpha.
    config
        A TOML file with the same fields as the options.
    """
    from safety_neurons.experiments.smallest_intervention import Limits
    from safety_neurons.experiments.smallest_intervention import search as find_smallest
    from safety_neurons.report import RunResults, tables_of

    limits = Limits(target, max_broken, max_kl, max_percent, max_alpha)
    with ConsoleListener() as listener:
        results = find_smallest(
            run_dir,
            given_settings(settings, config),
            trials=trials,
            limits=limits,
            on=on or (),
            listener=listener,
            command=command_line(),
        )
    print_tables(*tables_of(RunResults.of(results), "search"))
    print_where(run_dir)


@app.command
def guard(
    run_dir: RunFolderArgument,
    *,
    on: On = None,
    answers: bool = True,
    settings: SettingsArgument = None,
    config: Path | None = None,
) -> None:
    """Fit and test a guard: calibrate toward rejection only where the neurons say that the prompt is harmful.

    The guard has few neurons of its own (guard.percent), and the dose that is best on the validation prompts unless
    guard.alpha names one. The folder gets guard.safetensors. In Python:
    `with sn.guard(model, sn.Guard.load(path)): model.generate(...)`.

    Examples:

        safety-neurons guard runs/demo
        safety-neurons guard runs/demo --guard.false-positive-rate 0.05 --on jailbreakbench:alpaca
        safety-neurons guard runs/demo --on my-attacks.jsonl:alpaca --no-answers --guard.alpha 3

    Parameters
    ----------
    on
        HARMFUL:BENIGN pairs of prompt sets to test on, besides the run's own.
    answers
        Also let the guarded model answer the test prompts; without, only what it would flag is measured.
    config
        A TOML file with the same fields as the options.
    """
    from safety_neurons.experiments.guard_test import guard_run
    from safety_neurons.report import RunResults, tables_of

    with ConsoleListener() as listener:
        results = guard_run(
            run_dir,
            given_settings(settings, config),
            on=on or (),
            answers=answers,
            listener=listener,
            command=command_line(),
        )
    print_tables(*tables_of(RunResults.of(results), "guard"))
    console.print(f"Guard: {run_dir / 'guard.safetensors'}", soft_wrap=True)
    print_where(run_dir)


@app.command
def adaptive(
    run_dir: RunFolderArgument, *, on: str | None = None, settings: SettingsArgument = None, config: Path | None = None
) -> None:
    """Attack a run's tuned model by someone who knows the method: find its neurons afresh, calibrate to conformity.

    The run is tuned first where it is not yet. What the attack makes of the base model stands beside it.

    Examples:

        safety-neurons adaptive runs/demo
        safety-neurons adaptive runs/demo --on jailbreakbench:alpaca --data-dir my-copies

    Parameters
    ----------
    on
        A HARMFUL:BENIGN pair of prompt sets to ask instead of the run's test split.
    config
        A TOML file with the same fields as the options.
    """
    from safety_neurons.experiments.adaptive import adaptive as attack_tuned
    from safety_neurons.report import RunResults, tables_of

    with ConsoleListener() as listener:
        results = attack_tuned(
            run_dir, given_settings(settings, config), on=on, listener=listener, command=command_line()
        )
    print_tables(*tables_of(RunResults.of(results), "adaptive"))
    print_where(run_dir)
