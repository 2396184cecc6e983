"""Plug-in families (scores, attacks, defenses, judges): members by name, by entry point, or from a user's file."""

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import os
import pkgutil
import sys
import traceback
from collections.abc import Collection, Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from safety_neurons.core.addresses import take_credentials
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import file_sha256
from safety_neurons.core.trust import code_files, only_recorded

M = TypeVar("M")
N = TypeVar("N")
# Larger integers overflow in torch.
_LARGEST = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Family(Generic[M]):
    """The members of one kind, all instances of `contract`, a frozen dataclass with a `name`.

    A member is found by its name in the modules of `package`, which define ATTACK or a tuple ATTACKS (for the kind
    "attack"), by the name of an entry point in the group safety_neurons.attacks, or as path/to/file.py:NAME. After
    that, `:option=value,...` sets fields that the member's class adds to the contract.
    """

    kind: str
    package: ModuleType
    contract: type[M]

    def names(self) -> list[str]:
        """The names of all members, in order of their files, then of the entry points."""
        return list(dict.fromkeys([*self._built_in(), *sorted(self._entry_points())]))

    def get(self, spec: str) -> M:
        """The member that `spec` names; it is called by the whole of `spec`, so that its settings are told apart.

        The version of a member from a file is the hash of the file, so that what an edited one made is not reused.

        Raises:
            SafetyNeuronsError: there is no such member or option, or a value is not of the option's type.
        """
        spec = take_credentials(spec)
        name, _, options = spec.partition(":")
        if name.endswith(".py"):
            attribute, _, options = options.partition(":")
            member = self._from_file(Path(os.path.expanduser(name)), attribute)
        elif name in (built_in := self._built_in()):
            member = built_in[name]
        elif name in (others := self._entry_points()):
            try:
                loaded = others[name].load()
            except (Exception, SystemExit) as error:
                # The code of somebody else can raise anything.
                raise SafetyNeuronsError(
                    f"The {self.kind} {name} cannot be loaded from its package ({type(error).__name__}): {error}. "
                    f"Install that package again, or choose another {self.kind}."
                ) from error
            member = self._checked(loaded, spec)
        else:
            raise SafetyNeuronsError(unknown_name(self.kind, name, self.names()))
        if member.name == spec:
            return member
        given = _options(member, self.kind, name, options) if options else {}
        return dataclasses.replace(member, name=spec, **given)

    def narrowed(self, member: M, contract: type[N], problem: str) -> N:
        """The member, which has to be of a narrower class.

        Raises:
            SafetyNeuronsError: it is not; the message says the problem, and which members are.
        """
        if isinstance(member, contract):
            return member
        known = [name for name, one in self._built_in().items() if isinstance(one, contract)]
        raise SafetyNeuronsError(
            f"The {self.kind} {getattr(member, 'name', '')} {problem}. Choose one of {', '.join(known)}; the others "
            "run with `safety-neurons evaluate`."
        )

    def _built_in(self) -> dict[str, Any]:
        return discover(self.package, self.kind.upper())

    def _entry_points(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=f"safety_neurons.{self.kind}s")}

    def _from_file(self, path: Path, attribute: str) -> Any:
        if only_recorded(path):
            raise SafetyNeuronsError(
                f"The settings of this run name code in a file: {path}. If you trust it, name the {self.kind} again in "
                "this call, and it will be executed."
            )
        if not path.is_file():
            raise SafetyNeuronsError(f"The file {path} of the {self.kind} does not exist. Correct its path.")
        digest = file_sha256(path)
        member = getattr(_module(path.resolve(), digest), attribute, None)
        if not attribute or member is None:
            raise SafetyNeuronsError(
                f"{path} does not define {attribute or 'a name'}: give the {self.kind} as {path}:NAME, where NAME is a "
                f"{self.contract.__name__} in that file."
            )
        self._checked(member, f"{path}:{attribute}")
        versioned = any(field.name == "version" for field in dataclasses.fields(member))
        return dataclasses.replace(member, version=int(digest[:15], 16)) if versioned else member

    def _checked(self, member: Any, spec: str) -> Any:
        if not isinstance(member, self.contract):
            raise SafetyNeuronsError(
                f"{spec} is not a {self.contract.__name__} but a {type(member).__name__}. Name another object of "
                "the file."
            )
        return member


@functools.cache
def _module(path: Path, digest: str) -> ModuleType:
    name = f"safety_neurons_file_{digest[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        # The code is the user's, so it can raise anything; but whoever presses Ctrl-C wants to stop.
        if not isinstance(error, Exception | SystemExit):
            raise
        raise SafetyNeuronsError(
            f"{path} cannot be loaded ({raised_in(path, error)}): {error}. Correct the file."
        ) from error
    return module


def user_file(name: str) -> Path | None:
    """The file that the name of a member names, absolute; None if the member is not from a file."""
    file = name.partition(":")[0]
    return Path(os.path.expanduser(file)).resolve() if file.endswith(".py") else None


def raised_in(path: Path, error: BaseException) -> str:
    """The type of an exception, and the line of the file that raised it, if one did."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path) and error.lineno is not None:
        lines.append(error.lineno)
    return f"{type(error).__name__} in line {lines[-1]}" if lines else type(error).__name__


def digests(settings: Any) -> list[str]:
    """Content hashes of the files that settings name members in; empty for a file that does not exist."""
    return [file_sha256(path) if path.is_file() else "" for path in code_files(settings)]


def discover(package: ModuleType, attribute: str) -> dict[str, Any]:
    """The objects `attribute`, or in a tuple `attribute`S, of the modules of `package`, by their `name`.

    They are in order of the file names. Adding a member is adding a file that defines it.
    """
    members: dict[str, Any] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        single = [getattr(module, attribute)] if hasattr(module, attribute) else []
        members |= {member.name: member for member in (*single, *getattr(module, f"{attribute}S", ()))}
    return members


def unknown_name(kind: str, name: str, known: list[str]) -> str:
    """A message for a name that is not known, with the near ones first."""
    return f"There is no {kind} called {name!r}. {did_you_mean(name, known)}Known: {', '.join(known)}."


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """A question with the near names, and a space after it; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=cutoff)
    return f"Did you mean {' or '.join(near)}? " if near else ""


def listed(names: Collection[str], most: int = 3) -> str:
    """The first names for a message, and how many there are besides."""
    first = ", ".join(list(names)[:most])
    return first if len(names) <= most else f"{first} and {len(names) - most} more"


def options_of(member: Any) -> dict[str, Any]:
    """The options of a member and their values: the fields, functions aside, that its class adds to the contract."""
    contract = next(base for base in reversed(type(member).__mro__) if dataclasses.is_dataclass(base))
    shared = {field.name for field in dataclasses.fields(contract)}
    values = {
        field.name: getattr(member, field.name) for field in dataclasses.fields(member) if field.name not in shared
    }
    return {name: value for name, value in values.items() if not callable(value)}


def _options(member: Any, kind: str, name: str, given: str) -> dict[str, Any]:
    """The values in `option=value,...`, converted to the types of the member's fields."""
    types, known = get_type_hints(type(member)), list(options_of(member))
    options: dict[str, Any] = {}
    for part in given.split(","):
        option, equals, value = part.partition("=")
        option = option.strip().replace("-", "_")
        if not equals or option not in known:
            hint = f"Its options: {', '.join(known)}." if known else "It has no options."
            raise SafetyNeuronsError(f"{part.strip()!r} is not an option of the {kind} {name}. {hint}")
        try:
            options[option] = TypeAdapter(types[option]).validate_strings(value.strip())
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise SafetyNeuronsError(
                f"{kind} {name}: {option} cannot be {value.strip()!r} ({problem}). Correct it."
            ) from error
        if isinstance(options[option], int) and abs(options[option]) > _LARGEST:
            raise SafetyNeuronsError(f"{kind} {name}: {option} is too large. Give a number of at most {_LARGEST}.")
    return options
