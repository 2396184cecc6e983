"""Every command line in the documentation can be read by the command line, and every name in it exists."""

import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from safety_neurons import cli
from safety_neurons.cli.app import commands
from safety_neurons.evaluation import attacks, defenses, judges
from safety_neurons.neurons import scores
from safety_neurons.runs.folder import COMMON, changed_settings, inputs_of
from safety_neurons.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
} | {f"{name} --help": inspect.getdoc(command.default_command) or "" for name, command in commands()}
COMMANDS = {name for name, _ in commands()}
FENCE = re.compile(r"^( *)```[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
# After this, however it is started.
START = re.compile(r"(?:^|[\s/])safety-neurons |-m safety_neurons ")
# Words that stand for something of the reader's own, or for a part that is left out.
STANDS_FOR = ("COMMAND", "...")


def command_lines(text: str) -> Iterator[str]:
    """What stands after the program's name, in blocks of code (lines joined) and in running text."""
    blocks = [found[2].replace("\\\n", " ") for found in FENCE.finditer(text)]
    indented = re.findall(r"^    .+$", text, re.MULTILINE)
    running = INLINE.findall(FENCE.sub("", text))
    for line in [line for block in blocks for line in block.splitlines()] + indented + running:
        found = START.search(line)
        if found:
            yield line[found.end() :].strip()


LINES = sorted(
    {(page, line) for page, text in PAGES.items() for line in command_lines(text) if not line.startswith(STANDS_FOR)}
)


def test_lines_are_found_however_they_are_written() -> None:
    text = (
        "`safety-neurons list models` and\n```\nsafety-neurons run --out x \\\n    --seed 3  # why\n"
        "torchrun -m safety_neurons tune x\n```\n    .venv/bin/safety-neurons find y\nthe package safety-neurons is\n"
    )
    assert [shlex.split(line, comments=True) for line in command_lines(text)] == [
        ["run", "--out", "x", "--seed", "3"],
        ["tune", "x"],
        ["find", "y"],
        ["list", "models"],
    ]
    assert len(LINES) > 40


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda value: value[:60])
def test_command_line_is_understood(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    words = [word for word in words if word not in ("--help", "--help-all")]
    # A command can be named in running text without its arguments.
    if words == [] or " ".join(words) in COMMANDS or words in (["experiment"], ["list"], ["judge"]):
        return
    _, bound, _ = cli.app.parse_args(words, exit_on_error=False, print_error=False)
    given = bound.arguments
    settings = given.get("settings") or Settings()
    chosen = settings.evaluate
    for family, names in (
        (scores, [settings.find.score]),
        (attacks, chosen.attacks),
        (defenses, [*chosen.defenses, *(given.get("defenses") or ())]),
        (judges, [chosen.judge, *(chosen.judges or ()), *(given.get("judges") or ())]),
    ):
        for name in names:
            if ".py:" not in name:
                family.get(name)


@pytest.mark.parametrize("line", ["run --no-such-option 3", "no-such-command x", "tune runs/x --tune.learning_ratio 3"])
def test_mistakes_would_be_seen(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)unknown|unused|no-such|invalid"):
        cli.app.parse_args(shlex.split(line), exit_on_error=False, print_error=False)


def test_links_of_the_readme_lead_somewhere() -> None:
    """The site's own links are checked when it is built (`make docs`)."""
    page = ROOT / "README.md"
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    assert targets
    missing = []
    for target in targets:
        path, _, anchor = target.partition("#")
        file = page.parent / path
        if path.startswith("https://"):
            continue
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            missing.append(target)
    assert missing == []


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_examples_of_experiments_on_a_run_redo_nothing_of_it() -> None:
    checked = 0
    for page, line in LINES:
        if not page.startswith("experiment ") or not page.endswith(" --help"):
            continue
        _, bound, _ = cli.app.parse_args(shlex.split(line, comments=True), exit_on_error=False, print_error=False)
        settings = bound.arguments.get("settings") or Settings()
        if "run_dir" in bound.arguments:
            changed = changed_settings(Settings().model_dump(mode="json"), settings.model_dump(mode="json"))
            inputs = {*COMMON, *(path for stage in ("find", "tune") for path in inputs_of(settings)[stage][1])}
            assert not [path for path in changed if {path, path.partition(".")[0]} & inputs], line
            checked += 1
    assert checked > 10
