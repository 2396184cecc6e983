"""The command line: arguments in, tables out."""

import contextlib
import os
import signal
import sys
from typing import NoReturn

import cyclopts
import pydantic

from safety_neurons.cli import audits, evaluation, experiments, stages, tools  # noqa: F401
from safety_neurons.cli.advice import with_options
from safety_neurons.cli.app import app
from safety_neurons.cli.console import flush, print_error
from safety_neurons.cli.signals import Stopped, exit_status, stopped_by_signals
from safety_neurons.cli.streams import inert_output, prepare_streams
from safety_neurons.core.addresses import take_credentials, without_known_secrets
from safety_neurons.core.config import explain_problems
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.settings import Settings

__all__ = ["app", "main"]


def main() -> None:
    """The command line. Expected failures are one paragraph and exit code 2; a signal N ends with 128 + N."""
    prepare_streams()
    # Whatever is shown or recorded of the command line is without passwords.
    sys.argv[:] = take_credentials(sys.argv)
    with inert_output(), stopped_by_signals():
        try:
            _check_working_directory()
            with _processes() as owner:
                if owner:
                    _app()
                    flush()
        except SafetyNeuronsError as error:
            # What cannot be parsed was named as an option by the user.
            parsed = not isinstance(error.__cause__, cyclopts.CycloptsError)
            _fail(with_options(str(error), sys.argv[1:]) if parsed else str(error), 2)
        except KeyboardInterrupt as error:
            number = error.number if isinstance(error, Stopped) else signal.SIGINT
            by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
            _fail(f"Stopped{by}. Run the same command again to resume.", exit_status(number))


def _check_working_directory() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise SafetyNeuronsError(
            f"The working directory cannot be used ({error.strerror}). Change to a folder that exists: cd ~"
        ) from error


def _processes() -> contextlib.AbstractContextManager[bool]:
    """Whether this process owns the run: of the processes of torchrun, only the first."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return contextlib.nullcontext(True)
    from safety_neurons.core.distributed import join_processes
    from safety_neurons.runs.workers import TASKS

    return join_processes(TASKS)


def _app() -> None:
    try:
        app(exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        cause = error.__cause__
        problem = explain_problems(cause, Settings) if isinstance(cause, pydantic.ValidationError) else str(error)
        raise SafetyNeuronsError(problem) from error


def _fail(message: str, status: int) -> NoReturn:
    print_error(without_known_secrets(message))
    sys.exit(status)
