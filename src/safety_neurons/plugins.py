"""Finding the members of a family (scores, attacks, judges): one file each, found by name."""

import difflib
import importlib
import pkgutil
from types import ModuleType
from typing import Any

from safety_neurons.errors import SafetyNeuronsError


def discover(package: ModuleType, attribute: str) -> dict[str, Any]:
    """All objects called `attribute` in the modules of `package`, by their `name`, in order of the file names.

    Adding a member of the family is adding a file that defines `attribute`; nothing else has to be touched.
    """
    members: dict[str, Any] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        member = getattr(module, attribute, None)
        if member is not None:
            members[member.name] = member
    return members


def choose(members: dict[str, Any], name: str, kind: str) -> Any:
    """The member called `name`, or an error that lists what there is and what was probably meant.

    Raises:
        SafetyNeuronsError: no member has this name.
    """
    if name in members:
        return members[name]
    raise SafetyNeuronsError(unknown_name(kind, name, list(members)))


def unknown_name(kind: str, name: str, known: list[str]) -> str:
    """A message for a name that is not known, with the near ones first."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"There is no {kind} called {name!r}. {hint}Known: {', '.join(known)}."
