"""Files damaged in the ways in which disks, editors, copies, other versions and other people damage them."""

import copy
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HUGE = 10**400
# What stands in the place of a value.
OTHERS: tuple[Any, ...] = (None, [], {}, [[]], "", "text", "\ud800", -1, 0.5, HUGE, 10**12, 1e300, True)


class Damage(NamedTuple):
    """A way to damage a file: its name, and what does it to the file at a path."""

    name: str
    to: Callable[[Path], None]


def contents(good: bytes, seed: int = 0) -> dict[str, bytes]:
    """Other contents of a JSON file, or of a line of one, by what happened to it."""
    draw = random.Random(seed)
    flipped = bytearray(good)
    for _ in range(5):
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
    middle = len(good) // 2
    return {
        "empty": b"",
        "truncated": good[: draw.randrange(1, len(good) - 1)],
        "zeros": bytes(len(good)),
        "zeros within": good[:middle] + bytes(40) + good[middle + 40 :],
        "random": draw.randbytes(300).replace(b"\n", b"\r"),
        "flipped bits": bytes(flipped),
        "null": b"null",
        "list": b"[]",
        "object": b"{}",
        "text": b'"text"',
        "number": b"7",
        "infinite": b'{"schema": 1e999}',
        "NaN": b'{"schema": NaN}',
        "deep": b'{"a":' * 5000 + b"1" + b"}" * 5000,
        "rather deep": good[: good.rindex(b"}")] + b', "extra": ' + b"[" * 400 + b"]" * 400 + b"}",
        "many digits": b'{"schema": ' + b"9" * 5000 + b"}",
        "not UTF-8": good[:middle] + b"\xff\xfe\xc3" + good[middle:],
        "byte order mark": b"\xef\xbb\xbf" + good,
        "UTF-16": good.decode().encode("utf-16"),
        "twice": good + good,
        "duplicate keys": good[: good.rindex(b"}")] + b', "schema": null, "key": 3}',
        "older": good.replace(b'"schema": 3', b'"schema": 2', 1),
        "newer": good.replace(b'"schema": 3', b'"schema": 4', 1),
        "unknown field": good[: good.rindex(b"}")] + b', "of_the_future": {"a": [1]}}',
    }


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value within a document, the document itself last."""
    if isinstance(value, dict | list):
        # Of long lists the first and the last, as the others are alike.
        keys = list(value) if isinstance(value, dict) else sorted({0, len(value) - 1} & set(range(len(value))))
        for key in keys:
            yield from paths(value[key], (*above, key))
    yield above


def changes(document: Any, seed: int = 0, most: int | None = None) -> Iterator[tuple[str, Any]]:
    """Documents with one value removed or replaced, by what was done; `most` of all such, chosen by the seed."""
    every = [(place, way) for place in paths(document) if place for way in (*range(len(OTHERS)), "removed")]
    chosen = every if most is None or most >= len(every) else random.Random(seed).sample(every, most)
    for place, way in chosen:
        changed = copy.deepcopy(document)
        holder = changed
        for key in place[:-1]:
            holder = holder[key]
        name = ".".join(map(str, place))
        if way == "removed":
            del holder[place[-1]]
            yield f"{name} removed", changed
        else:
            holder[place[-1]] = copy.deepcopy(OTHERS[int(way)])
            yield f"{name} = {OTHERS[int(way)]!r:.20}", changed


def written(content: bytes) -> Callable[[Path], None]:
    """Writes this in the place of a file."""
    return lambda path: _write(path, content)


def as_json(document: Any) -> bytes:
    return json.dumps(document).encode()


def _write(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _sparse(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)


# What stands in the place of a regular file.
PLACES = (
    Damage("folder", _folder),
    Damage("pipe", _pipe),
    Damage("link loop", _loop),
    Damage("dangling link", _dangling),
    Damage("device", _device),
    Damage("sparse", _sparse),
    Damage("missing", lambda path: path.unlink()),
)


def damages(path: Path, seed: int = 0, most: int = 40, contents_too: int | None = None) -> list[Damage]:
    """Damage to a JSON file: `most` changes of single values, `contents_too` (Default: all) of the other contents, and
    everything that can stand in its place."""
    good = path.read_bytes()
    values = [Damage(name, written(as_json(found))) for name, found in changes(json.loads(good), seed, most)]
    whole = [Damage(name, written(found)) for name, found in contents(good, seed).items()]
    chosen = whole if contents_too is None else random.Random(seed).sample(whole, contents_too)
    return [*chosen, *PLACES, *values]
