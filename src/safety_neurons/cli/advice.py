"""The options of the command line, for errors in which the library names its arguments and settings."""

import re
from collections.abc import Sequence

from safety_neurons.cli.app import app

# Names with an underscore or a dot, and two that are no English words, stand for themselves; others only in
# parentheses, or after a verb that tells the user to change them: "Raise trials, or lower tune.learning_rate".
_PATTERNS = (
    re.compile(r"(?<![\w./:'\"-])(?P<name>dtype|quantize|[a-z]+(?:[._][a-z]+)+)(?P<off>=False)?(?![\w/])"),
    re.compile(
        r"\b(?:raise|lower|set|give|change|omit|correct) (?:another )?`?"
        r"(?P<name>[a-z]+)(?P<off>=False)?\b(?!\w|[./]\w)",
        re.IGNORECASE,
    ),
    re.compile(r"\((?P<name>[a-z]+)(?P<off>=False)?\)"),
)


def with_options(message: str, arguments: Sequence[str]) -> str:
    """The message, with the options of the command in `arguments` for what the message names as Python does."""
    options = _options(arguments)
    found = [one for pattern in _PATTERNS for one in pattern.finditer(message) if one["name"] in options]
    named = [options[one["name"]][-1 if one["off"] else 0] for one in sorted(found, key=re.Match.start)]
    # What the message has already is not said twice.
    new = [option for option in dict.fromkeys(named) if option not in message]
    return f"{message} On the command line: {', '.join(new)}." if new else message


def _options(arguments: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The options of a command, each with its negative one, if any, by their names in Python.

    Those of settings also by the last part of the name, where it is unique. Empty where the arguments name no command.
    """
    command = app.parse_commands(list(arguments))[1][-1]
    if command.default_command is None:
        return {}
    both = [argument.names for argument in command.assemble_argument_collection()]
    found = {names[0].removeprefix("--").replace("-", "_"): names for names in both if names[0].startswith("--")}
    # A section is not an option.
    found = {name: names for name, names in found.items() if not any(other.startswith(f"{name}.") for other in found)}
    last = [name.rpartition(".")[2] for name in found]
    short = {name.rpartition(".")[2]: names for name, names in found.items()}
    return {name: names for name, names in short.items() if last.count(name) == 1} | found
