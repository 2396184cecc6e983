"""Who named what: a file of code, a folder of tasks or a server that only a run's record names gets nothing.

A record may come from somebody else. Code that it names is not executed, and servers that it names are sent no API key,
until the user names them in a call of this process.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Settings that are folders of code: the tasks of the LM Evaluation Harness can call Python functions.
CODE_FOLDERS = ("task_folder",)

_recorded: set[str] = set()
_named: set[str] = set()


def trust(given: Any, recorded: Any) -> None:
    """Remember the code and the addresses in the settings `given` to a call, and in those that a record holds."""
    _named.update(_things(given))
    _recorded.update(_things(recorded))


def trusted(settings: Any) -> bool:
    """Whether all code and all addresses in the settings were given in this process."""
    return _named.issuperset(_things(settings))


def only_recorded(thing: str | Path) -> bool:
    """Whether a path of code or an address was named by a record, and by no call."""
    name = _address(thing) if isinstance(thing, str) and "://" in thing else _path(thing)
    return name in _recorded - _named


def code_files(settings: Any) -> Iterator[Path]:
    """The files in which settings name members of families, as path/to/file.py:NAME."""
    for _, value in _texts(settings):
        name = value.partition(":")[0]
        if name.endswith(".py"):
            yield Path(_path(name))


def code_in(settings: Mapping[str, Any]) -> dict[str, str]:
    """The code that settings name: the last of the settings that name it, by path."""
    found = {}
    for setting, value in _texts(settings):
        name = value.partition(":")[0]
        if name.endswith(".py") or setting.rpartition(".")[2] in CODE_FOLDERS:
            found[_path(name if name.endswith(".py") else value)] = setting
    return found


def _things(settings: Any) -> Iterator[str]:
    for setting, value in _texts(settings):
        name = value.partition(":")[0]
        if name.endswith(".py"):
            yield _path(name)
        if setting.rpartition(".")[2] in CODE_FOLDERS:
            yield _path(value)
        # An address is a whole setting, or an option of a member: judge:endpoint=ADDRESS,model=NAME.
        options = (part.partition("=")[2] for part in value.split(","))
        yield from (_address(one) for one in (value, *options) if "://" in one)


def _texts(settings: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested settings, with its dotted name."""
    if isinstance(settings, str | Path):
        yield above, str(settings)
    elif isinstance(settings, Mapping):
        for name, value in settings.items():
            yield from _texts(value, f"{above}.{name}" if above else str(name))
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _texts(value, above)


def _path(name: str | Path) -> str:
    """One spelling of a path; a text that cannot be one stays as it is."""
    try:
        return os.path.realpath(os.path.expanduser(name))
    except ValueError:
        return str(name)


def _address(text: str) -> str:
    """An address in one spelling, without user, password and query."""
    try:
        parts = urlsplit(text.strip())
        host = f"{parts.hostname}:{parts.port}"
    except ValueError:
        return text.strip()
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
