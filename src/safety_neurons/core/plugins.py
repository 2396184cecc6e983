"""Finding the members of a family (scores, attacks, judges): one file each, found by name."""

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from safety_neurons.core.errors import SafetyNeuronsError


def discover(package: ModuleType, attribute: str) -> dict[str, Any]:
    """The members of a family by name: `attribute`, or the tuple `attribute` + "S", of every module of `package`."""
    members: dict[str, Any] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        single = [getattr(module, attribute)] if hasattr(module, attribute) else []
        members |= {member.name: member for member in (*single, *getattr(module, f"{attribute}S", ()))}
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
    return f"There is no {kind} called {name!r}. {did_you_mean(name, known)}Known: {', '.join(known)}."


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """A question with the near names, and a space after it; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=cutoff)
    return f"Did you mean {' or '.join(near)}? " if near else ""


def configured(members: dict[str, Any], spec: str, kind: str) -> Any:
    """The member that `spec` names, a dataclass; `name:option=value,...` sets fields that its class adds to its base.

    What comes back is called by the whole of `spec`, so that two settings of one member are told apart.

    Raises:
        SafetyNeuronsError: no member has this name or such an option, or a value is not of the option's type.
    """
    name, colon, given = spec.partition(":")
    member = choose(members, name, kind)
    if not colon:
        return member
    types = get_type_hints(type(member))
    known = list(options_of(member))
    options: dict[str, Any] = {}
    for part in given.split(","):
        option, equals, value = part.partition("=")
        option = option.strip().replace("-", "_")
        if not equals or option not in known:
            hint = f"Its options: {', '.join(known)}." if known else "It has no options."
            raise SafetyNeuronsError(f"{part.strip()!r} is no option of the {kind} {name}. {hint}")
        try:
            options[option] = TypeAdapter(types[option]).validate_strings(value.strip())
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise SafetyNeuronsError(f"{kind} {name}: {option} cannot be {value.strip()!r} ({problem}).") from error
    return dataclasses.replace(member, name=spec, **options)


def options_of(member: Any) -> dict[str, Any]:
    """The options of a member and their values: all fields but those that every member of its family has."""
    described = {
        "name",
        "source",
        "description",
        "budget",
        "sees_defended_model",
        "changes_model",
        "version",
        "apply",
        "judge",
    }
    return {
        field.name: getattr(member, field.name) for field in dataclasses.fields(member) if field.name not in described
    }
