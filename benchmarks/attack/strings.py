"""Hostile text in every place of a run's files that holds text, and what of it reaches a reader."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from attack import forked
from attack.outcome import Tally, tracked
from attack.subject import Subject, commands
from builders.hostile import foreign_markdown
from safety_neurons.core.progress import Listener

HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj\u2066\u2028\u200b\ud800 [a](javascript:alert(1)) "
    "![i](https://x.invalid/p) <img src=x onerror=alert(1)> </script><script>alert(2)</script> | # `` ``` "
    "\r\n---\n{{ 7 * 7 }} [red]x[/red]"
)
# No output may hold these: controls, and marks that reorder or hide what stands beside them.
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff]")
# Elements of our own tables and cards, besides those of plain text.
OWN = ("h1", "h2", "h3", "hr", "ul", "ol", "li", "pre", "a", "em")
TAGS = re.compile("<img src=x|<script>alert")
FILES = ("results.json", "run.json")
READERS = ("report", "report md", "compare", "merge", "tokens")


def hostile_strings(subject: Subject, work: Path, listener: Listener) -> Tally:
    """Put hostile text into each kind of place, one at a time, and let every command show it."""
    tally = Tally("hostile text in results.json and run.json")
    places = [(name, *one) for name in FILES for one in _places(json.loads((subject.folder / name).read_text()))]
    for name, place, change in tracked(tally, places, listener):
        run = subject.copy(work / "run")
        (run / name).write_text(json.dumps(change()), encoding="utf-8")
        for command in READERS:
            shutil.rmtree(work / "out", ignore_errors=True)
            (work / "out").mkdir()
            ended = forked.run(commands(run, work / "out", ())[command])
            if ended.crashed:
                tally.note("traceback", f"{name} {place}, {command}", ended.output)
            for where, text in _shown(ended.output, run, work / "out"):
                for seen in _harmful(where, text):
                    tally.note("raw", f"{name} {place}, {command}, {where}", ascii(seen))
    return tally


def _harmful(where: str, text: str) -> Iterator[str]:
    """What in an output does more than show characters."""
    if found := RAW.search(text) or (TAGS.search(text) if where.endswith(".html") else None):
        yield text[max(0, found.start() - 80) : found.end() + 80]
    if where.endswith(".md"):
        # A card begins with its data, which is not Markdown.
        body = text.partition("\n---\n")[2] if text.startswith("---\n") else text
        yield from foreign_markdown(body, *OWN)


def _shown(output: str, run: Path, out: Path) -> Iterator[tuple[str, str]]:
    """What a person would read: the terminal, the page without its own scripts, the tables and the card."""
    yield "terminal", output
    for path in (run / "report.html", out / "report.md", out / "merged" / "README.md"):
        if path.exists():
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
            yield (
                path.name,
                re.sub(r"<script[ >].*?</script>", "", text, flags=re.DOTALL) if path.suffix == ".html" else text,
            )


def _places(content: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each kind of place that holds text, or a key of the file's author, with the content that has the text there."""
    seen: set[str] = set()
    for path, value in _strings(content, ()):
        kind = ".".join("[]" if isinstance(part, int) else part for part in path)
        if kind not in seen:
            seen.add(kind)
            yield kind, partial(_replaced, content, path, f"{value} {HOSTILE}")


def _strings(value: Any, path: tuple[int | str, ...]) -> Iterator[tuple[tuple[int | str, ...], str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list):
        for name, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _strings(one, (*path, name))


def _replaced(value: Any, path: tuple[int | str, ...], text: str) -> Any:
    if not path:
        return text
    first, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[first] = _replaced(value[first], tuple(rest), text)  # type: ignore[index]
    return copy
