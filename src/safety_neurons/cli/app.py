"""What all commands share: the application, the types of their arguments, their help, and where settings come from."""

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import cyclopts
from cyclopts import Parameter
from pydantic import BaseModel

from safety_neurons.cli.console import ConsoleListener, console, errors, print_line, print_tables
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import exists, read_text
from safety_neurons.core.trust import code_in
from safety_neurons.settings import PROFILES, Profile, Settings

if TYPE_CHECKING:
    from safety_neurons.report import Part, RunResults

R = TypeVar("R")

app = cyclopts.App(
    name="safety-neurons",
    help="""Find the neurons that carry a language model's safety behavior, read what they promote, test that they
cause refusals, and tune only them so that fewer jailbreaks succeed.

For example:

    safety-neurons run                           everything, on the embedded model
    safety-neurons run --model qwen3-0.6b --out runs/qwen3
    safety-neurons run --harmful my-prompts.csv --benign alpaca --find.percent 1
    safety-neurons tune runs/demo --auto         search how to tune
    safety-neurons evaluate runs/demo            attacks by defenses by judges
    safety-neurons audit BASE TUNED              has a fine-tune lost its base's safety
    safety-neurons guard runs/demo               steer only what is found harmful
    safety-neurons experiment scores runs/scores compare all neuron scores
    safety-neurons list models                   presets, and what each needs
""",
    console=console,
    error_console=errors,
    help_format="markdown",
    help_flags=("--help", "-h", "--help-all"),
    version_flags=["--version"],
    default_parameter=Parameter(negative_iterable=(), consume_multiple=True),
    suppress_keyboard_interrupt=False,
)

SettingsArgument = Annotated[Settings | None, Parameter(name="*")]
ConfigArgument = Annotated[
    Path | None, Parameter(help="A TOML file of settings; options override it. It cannot permit to run code.")
]
Count = Annotated[int, Parameter(validator=cyclopts.validators.Number(gte=1))]
TrustArgument = Annotated[
    bool, Parameter(help="Run code that comes with the model. Only for models whose authors you trust.", negative=())
]
ProfileArgument = Annotated[
    Profile | None,
    Parameter(
        help="quick: fewer prompts and less training, for a first look. paper: the paper's method as printed. "
        "paper-released: as the code of its authors does it. Default: our own recipe."
    ),
]
RunFolderArgument = Annotated[Path, Parameter(help="The run's folder.")]

# The settings that --help shows, of those that concern a command; --help-all shows all.
COMMON = (
    *("model", "harmful", "benign", "data_dir", "seed", "device", "quantize", "batch_size", "show_responses"),
    *("find.score", "find.percent", "find.scope", "find.prompts"),
    *("explain.words", "explain.neurons", "explain.random_sets"),
    *("calibrate.alpha_conformity", "calibrate.alpha_rejection"),
    *("calibrate.prompt_positions", "calibrate.generated_tokens"),
    *("guard.percent", "guard.false_positive_rate", "guard.alpha"),
    *("tune.corpus", "tune.refusals", "tune.learning_rate", "tune.epochs", "tune.kl", "tune.max_over_refusal"),
    *("evaluate.attacks", "evaluate.defenses", "evaluate.judges", "evaluate.on", "evaluate.prompts"),
    *("evaluate.utility", "evaluate.tasks"),
)


def group(name: str, help: str) -> cyclopts.App:
    """A command that holds others."""
    made = cyclopts.App(name=name, help=help, help_flags=app.help_flags)
    app.command(made)
    return made


def shows(*names: str) -> dict[str, Any]:
    """How to register a command that takes settings: its --help shows these fields and sections, as far as common."""
    shown = {field for field in COMMON if field in names or field.partition(".")[0] in names}
    hidden = {_option(field) for field in _fields(Settings) if field not in shown}

    def panel_without_hidden(console: Any, options: Any, panel: Any) -> None:
        from cyclopts.help import DefaultFormatter

        if "--help-all" not in sys.argv:
            panel.entries = [entry for entry in panel.entries if hidden.isdisjoint(entry.names)]
        DefaultFormatter()(console, options, panel)

    return {"help_formatter": panel_without_hidden, "help_epilogue": "All settings: --help-all"}


def _fields(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def commands(within: cyclopts.App = app, prefix: str = "") -> Iterator[tuple[str, cyclopts.App]]:
    """Every command by its full name ("experiment search")."""
    for name in within:
        if not name.startswith("-"):
            command = within[name]
            if command.default_command is None:
                yield from commands(command, f"{prefix}{name} ")
            else:
                yield f"{prefix}{name}", command


def perform(
    function: Callable[..., R],
    *arguments: Any,
    settings: Settings | None,
    config: Path | None,
    profile: Profile | None = None,
    **options: Any,
) -> R:
    """The results of a function of the library, called with what the user set, with progress bars."""
    given = given_settings(settings, config, profile)
    with ConsoleListener() as listener:
        return function(*arguments, given, **options, listener=listener, command=command_line())


def given_settings(settings: Settings | None, config: Path | None, profile: Profile | None = None) -> dict[str, Any]:
    """The settings of the profile, overridden by those of the file, overridden by those of the command line."""
    from safety_neurons.runs.folder import overridden

    options = {} if settings is None else settings.model_dump(mode="json", exclude_unset=True)
    given: dict[str, Any] = {} if profile is None else dict(PROFILES[profile])
    given = overridden(given if config is None else overridden(given, _read_config(config)), options)
    named = code_in(options)
    for code, field in code_in(given).items():
        if code not in named:
            raise SafetyNeuronsError(
                f"The settings file {config} names code, {code}, and no file can permit to execute it. If you trust "
                f"it, name it on the command line, too, with {_option(field)}."
            )
    return given


def command_line() -> str:
    return f"safety-neurons {shlex.join(sys.argv[1:])}"


def _read_config(path: Path) -> dict[str, Any]:
    import tomllib

    text = read_text(path, "Name a TOML file of settings, or omit --config.")
    try:
        given = tomllib.loads(text)
        # Checked alone: an option could hide a mistake in the file.
        settings = Settings.checked(given)
    except SafetyNeuronsError as error:
        raise SafetyNeuronsError(f"The settings file {path} cannot be used: {error}") from error
    # An integer of too many digits is a ValueError, too.
    except ValueError as error:
        raise SafetyNeuronsError(f"The settings file {path} is not valid TOML: {error}. Correct it.") from error
    except RecursionError as error:
        raise SafetyNeuronsError(f"The settings file {path} is nested too deeply. Correct it.") from error
    if settings.trust_remote_code:
        raise SafetyNeuronsError(
            f"The settings file {path} sets trust_remote_code, and no file can permit to run a model's code. Remove "
            "it there, and give --trust-remote-code on the command line if you trust the model's authors."
        )
    return given


def print_results(results: "RunResults", run_dir: Path | None, *parts: "Part") -> None:
    """The tables of these parts of a run; with a folder, where the report is."""
    from safety_neurons.report import tables_of

    print_tables(*tables_of(results, *parts))
    if run_dir is not None:
        print_where(run_dir)


def check_written(*paths: Path) -> None:
    """Check that what a command says it wrote is there: the folder may have been removed meanwhile.

    Raises:
        SafetyNeuronsError: one is missing.
    """
    if lost := [path for path in paths if not exists(path)]:
        raise SafetyNeuronsError(f"{lost[0]} was written, and is gone. Run the same command again.")


def print_where(run_dir: Path) -> None:
    """Where the report and the numbers are; a run that was not reported on has no report yet."""
    files = {"Report": run_dir / "report.html", "Numbers": run_dir / "results.json"}
    print_line("   ".join(f"{name}: {path}" for name, path in files.items() if exists(path)))
