"""Whether two runs came to the same, and what became of the files of a folder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What differs between two runs that came to the same.
TIMES = {"seconds", "started", "finished", "command", "peak", "versions", "seconds_per_step"}
LARGEST = 1 << 28


def results(folder: Path) -> Any:
    """What a run or an evaluation came to, without times; None if it left nothing."""
    for name in ("results.json", "evaluation.json"):
        if (folder / name).exists():
            return _timeless(json.loads((folder / name).read_text(encoding="utf-8")))
    return None


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(one) for name, one in value.items() if name not in TIMES}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """The places at which two results differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted(one.keys() | other.keys()):
            yield from differences(one.get(name), other.get(name), f"{path}.{name}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            yield from differences(mine, theirs, f"{path}[{number}]")
    elif one != other:
        yield f"{path}: {str(one)[:80]} / {str(other)[:80]}"


def lines(folder: Path) -> dict[str, set[bytes]]:
    """The whole lines of every cache in a folder and below it, by the name of the file."""
    found: dict[str, set[bytes]] = {}
    for path in folder.rglob("*.jsonl*"):
        # One of a terabyte was made by an attack.
        if path.is_file() and not path.is_symlink() and path.stat().st_size < LARGEST:
            name = path.name.removesuffix(".damaged")
            found.setdefault(name, set()).update(line for line in path.read_bytes().split(b"\n") if line.strip())
    return found


def lost(before: Path, after: Path, damaged: str) -> list[str]:
    """The files of `before` that are gone from `after`, and caches that lost lines; the damaged file aside."""
    names = {path.name for path in after.rglob("*")}
    gone = [path.name for path in before.iterdir() if path.name != damaged and path.name not in names]
    had, has = lines(before), lines(after)
    fewer = [name for name, own in had.items() if name != damaged and own - has.get(name, set())]
    return gone + [f"lines of {name}" for name in fewer if name not in gone]
