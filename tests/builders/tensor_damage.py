"""Files that are damaged or forged in many ways, as they come from broken disks and from strangers."""

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import RootModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from builders.damage import PLACES, written
from safety_neurons.core.tensors import ENTRY, write_tensors

Damage = Callable[[Path], None]


class Anything(RootModel[Any]):
    """A description that is whatever it is."""


def _rewritten(change: Callable[[bytes], bytes]) -> Damage:
    return lambda path: written(change(path.read_bytes()))(path)


def _unreadable(path: Path) -> None:
    """Also for root, who may read everything: the file is a loop of links then."""
    path.chmod(0)
    if os.access(path, os.R_OK):
        path.unlink()
        path.symlink_to(path.name)


def _length(size: int) -> Damage:
    """The header's length, which begins the file, is another one."""
    return _rewritten(lambda content: size.to_bytes(8, "little") + content[8:])


def _cut(share: float) -> Damage:
    return _rewritten(lambda content: content[: int(len(content) * share)])


RAW: dict[str, Damage] = {
    "empty": _rewritten(lambda _: b""),
    **{f"cut at {share:.0%}": _cut(share) for share in (0.01, 0.3, 0.6, 0.99)},
    "longer": _rewritten(lambda content: content + b"more"),
    "NULs": _rewritten(lambda content: bytes(len(content))),
    "random bytes": _rewritten(lambda content: random.Random(0).randbytes(len(content))),
    "text": _rewritten(lambda _: b"Hello."),
    "no header": _length(0),
    "short header": _length(10),
    "header longer than the file": _length(1 << 26),
    "header of many exabytes": _length((1 << 64) - 1),
    "huge header": _rewritten(lambda _: (1 << 24).to_bytes(8, "little") + b'{"a":' + b" " * ((1 << 24) - 5)),
    "deep header": _rewritten(lambda _: (1 << 16).to_bytes(8, "little") + b'{"a":' + b"[" * ((1 << 16) - 5)),
    "unreadable": _unreadable,
    **{place.name: place.to for place in PLACES},
}


def _with_entry(change: Callable[[str], str | None]) -> Damage:
    """The same tensors, with other metadata."""

    def damage(path: Path) -> None:
        tensors, entry = content(path)
        changed = change(entry)
        path.unlink()
        save_file(tensors, path, None if changed is None else {ENTRY: changed})

    return damage


def _changed(**fields: Any) -> Callable[[str], str]:
    return lambda entry: json.dumps(json.loads(entry) | fields)


def _constant(text: str) -> Callable[[str], str]:
    return lambda _: text


METADATA: dict[str, Damage] = {
    "no metadata": _with_entry(lambda _: None),
    **{f"metadata {text!r}": _with_entry(_constant(text)) for text in ("", "null", "[]", "5", "{}", "{", '"x"')},
    "deep metadata": _with_entry(lambda _: "[" * 100_000),
    "metadata of deep description": _with_entry(
        lambda entry: entry.replace('"about": ', '"about": ' + "[" * 900 + "]" * 900 + ', "x": ', 1)
    ),
    "other kind": _with_entry(_changed(kind="recipe")),
    "kind is a list": _with_entry(_changed(kind=["guard"])),
    "other digest": _with_entry(_changed(digest="0" * 64)),
    "digest is null": _with_entry(_changed(digest=None)),
    "description is null": _with_entry(_changed(about=None)),
    "description is changed": _with_entry(lambda entry: entry.replace("0", "1")),
}


def content(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file and its metadata."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata()[ENTRY]  # noqa: SIM118


def forge(path: Path, tensors: dict[str, Tensor] | None = None, about: Any = ...) -> None:
    """Write the file again with other content and the digest that belongs to it."""
    own, entry = content(path)
    described = json.loads(entry)
    path.unlink()
    about = Anything(described["about"] if about is ... else about)
    write_tensors(path, described["kind"], own if tensors is None else tensors, about)


def other_tensors(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What a tensor of a file cannot be."""
    yield f"{name} of another type", value.double() if value.is_floating_point() else value.to(torch.int32)
    yield f"{name} with more dimensions", value[None]
    yield f"{name} without dimensions", torch.zeros((), dtype=value.dtype) if value.dim() else torch.zeros(1)
    if value.is_floating_point() and value.numel():
        for number in (float("nan"), float("inf")):
            changed = value.clone()
            changed.view(-1)[-1] = number
            yield f"{name} with {number}", changed
    if value.dtype == torch.int64:
        for bad in ([-1], [1 << 40], [3, 2], [2, 2], [-(1 << 63)], [(1 << 63) - 1]):
            yield f"{name} of {bad}", torch.tensor(bad)


WRONG: list[Any] = [None, -1, 10**30, 0.5, float("nan"), "x\x1b", [], {}, [[1]], True]


def other_values(value: Any) -> Iterator[Any]:
    """The JSON value with one of its parts replaced by something else, for each part, or removed."""
    yield from WRONG
    if isinstance(value, dict):
        yield value | {"unknown": 1}
        for name, part in value.items():
            yield {key: other for key, other in value.items() if key != name}
            yield from (value | {name: changed} for changed in other_values(part))
    elif isinstance(value, list) and value:
        yield value[1:]
        yield [*value, value[-1]]
        yield from ([changed, *value[1:]] for changed in other_values(value[0]))
