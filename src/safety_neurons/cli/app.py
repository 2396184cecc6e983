"""What all commands share: the application, the types of their arguments, and where settings come from."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from safety_neurons.cli.console import ConsoleListener, console, print_tables
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.settings import Settings

if TYPE_CHECKING:
    from safety_neurons.report import Part

DEFAULT_OUT = Path("runs/demo")

app = cyclopts.App(
    name="safety-neurons",
    help="""Find the neurons that carry a language model's safety behavior, say what they promote, prove that they
cause refusals, and tune only them so that jailbreaks fail.

Examples:

    safety-neurons run                              everything, on the embedded model
    safety-neurons run --model qwen3-0.6b --out runs/qwen3
    safety-neurons run --harmful my-prompts.csv --benign alpaca --find.percent 1
    safety-neurons run --harmful advbench --benign alpaca --data-dir my-copies
    safety-neurons calibrate runs/demo --calibrate.alpha-rejection 2
    safety-neurons calibrate runs/demo --alpha -6:6:2   refusals over the dose
    safety-neurons search runs/demo                 the smallest set and dose that move behavior
    safety-neurons guard runs/demo                  steer only what the neurons find harmful
    safety-neurons tune runs/demo --auto --max-over-refusal 0.02   search how to tune
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
On = Annotated[list[str] | None, Parameter(consume_multiple=True)]

# The tables that are printed after each stage.
_SHOWN: dict[str, tuple["Part", ...]] = {
    "calibrate": ("calibration",),
    "evaluate": ("before_after",),
    "report": ("calibration", "before_after"),
}


def run_until(out: Path, settings: Settings | None, config: Path | None, until: str) -> None:
    from safety_neurons.report import RunResults, tables_of
    from safety_neurons.runs.pipeline import run

    with ConsoleListener() as listener:
        results = run(out, given_settings(settings, config), until=until, listener=listener, command=command_line())
    print_tables(*tables_of(RunResults.of(results), *_SHOWN.get(until, ())))
    if until == "report":
        print_where(out)


def given_settings(settings: Settings | None, config: Path | None) -> dict[str, Any]:
    """What the settings file says, and over it what the options say."""
    from safety_neurons.runs.folder import overridden

    given = {} if config is None else _read_config(config)
    return given if settings is None else overridden(given, settings.model_dump(mode="json", exclude_unset=True))


def command_line() -> str:
    return f"safety-neurons {shlex.join(sys.argv[1:])}"


def _read_config(path: Path) -> dict[str, Any]:
    import tomllib

    from safety_neurons.runs.folder import merged_settings

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


def print_where(run_dir: Path) -> None:
    console.print(f"Report: {run_dir / 'report.html'}   Numbers: {run_dir / 'results.json'}", soft_wrap=True)
