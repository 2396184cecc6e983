"""Commands with hostile names of paths, prompts, models and options, and all ways to print: the terminal is ours."""

import json
import logging
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from builders.commands import inside
from builders.hostile import HOSTILE, READABLE, forbidden
from builders.models import tiny_model
from builders.report import full
from builders.runs import Splits, save_model, small_run, write_prompts
from safety_neurons.cli.console import ConsoleListener, console, print_error, print_line, print_tables
from safety_neurons.cli.streams import inert_output
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.tables import Table, words
from safety_neurons.runs.pipeline import run

# What the system takes as the name of a file; the color and the title are none that we use.
NAME = "a\x1b[5;47m\x1b]0;t\x07\x9b7m\u202eb\u2066\u200b\r\nError: [red]c :x: <i>\U000e0041"
# What rich writes: colors, and moves of the cursor while bars are drawn.
DRAWN = re.compile(r"\x1b\[[\d;?]*[A-Za-z]|\r")


Printed = Callable[[], str]


@pytest.fixture(params=["terminal", "pipe"])
def printed(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Printed:
    """What both streams got since the last call, without what rich draws; none of it may be forbidden."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if request.param == "terminal" else "0")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm-256color")

    def read() -> str:
        raw = "".join(capsys.readouterr())
        assert "\x1b[5;47m" not in raw
        assert "\x1b]" not in raw
        text = DRAWN.sub("", raw)
        assert forbidden(text) == []
        assert text
        return text

    return read


def settings(folder: Path) -> dict[str, Any]:
    """A small run whose model and prompt files have a hostile name, as have ids and categories."""
    given = small_run(folder, Splits(4, 2, 2), find={"percent": 20.0}, explain={"random_sets": 0})
    given["model"] = save_model(tiny_model(), folder / NAME)
    given["harmful"] = write_prompts(folder / f"{NAME}.jsonl", NAME + " number {}", Splits(4, 2, 2))
    return given


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inert")
    run(folder / NAME / "run", settings(folder), until="find")
    return folder / NAME / "run"


def test_stages_and_tokens(found: Path, printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (
        ["explain", str(found)],
        ["tokens", str(found), NAME],
        ["report", str(found)],
        ["report", str(found), "--format", "md"],
        ["find", str(found), "--find.percent", "10"],
    ):
        assert inside(monkeypatch, *arguments) == 0, arguments
    said = printed()
    assert "Which safety neurons fire" in said
    assert "run/report.md" in said.replace("\n", "")
    for name in ("report.html", "report.md"):
        source = (found / name).read_text(encoding="utf-8")
        assert forbidden(source.split("<script>", 1)[0]) == []


def test_evaluation_and_comparison(
    tmp_path: Path, found: Path, printed: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / NAME
    model = str(found.parent)
    # A colon would end the first name of a pair.
    name = NAME.replace(":", "")
    files = [write_prompts(tmp_path / f"{name}{side}.jsonl", name + side, Splits(1, 1, 2)) for side in ("1", "2")]
    pair = ":".join(files)
    options = ["--evaluate.attacks", "direct", "--evaluate.answer-tokens", "2", "--evaluate.prompts", "2"]
    options += ["--device", "cpu", "--evaluate.on", pair]
    assert inside(monkeypatch, "evaluate", model, "--out", str(out), *options) == 0, printed()
    other = shutil.copytree(out, tmp_path / f"{NAME}2")
    # A tiny model's answers cannot be judged: the error names both folders.
    assert inside(monkeypatch, "compare", str(out), str(other)) == 2
    said = " ".join(printed().split())
    assert "Numbers: " in said
    assert "have no request in common" in said
    assert forbidden((out / "evaluation.md").read_text(encoding="utf-8")) == []


def test_reports_side_by_side(tmp_path: Path, printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / NAME, tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(full()))
    assert (
        inside(monkeypatch, "report", *map(str, folders), "--out", str(tmp_path / f"{NAME}.md"), "--format", "md") == 0
    )
    assert "Report: " in printed()


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", NAME],
        ["report", "\udcff" + NAME],
        ["run", "--out", "x", "--model", NAME],
        ["run", "--out", "x", "--config", NAME],
        ["run", "--out", "x", f"--{NAME}"],
        ["run", "--out", "x", "--find.percent", NAME],
        ["run", "--out", "x", "--find.score", NAME],
        ["run", "--out", "x", "--harmful", NAME, "--benign", NAME],
        ["evaluate", NAME],
        ["evaluate", "x", "--evaluate.attacks", NAME],
        ["evaluate", "x", "--evaluate.defenses", f"smoothllm:{NAME}=2"],
        ["compare", NAME, NAME],
        ["judge", "check", NAME],
        ["merge", NAME, NAME],
        ["tokens", NAME, NAME],
        [NAME],
        ["list", NAME],
    ],
)
def test_errors_that_quote_names(
    tmp_path: Path, printed: Printed, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert inside(monkeypatch, *arguments) == 2
    said = printed()
    assert said.count("\nError: ") + said.startswith("Error: ") == 1, "no line of a name passes for an error of ours"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_whatever_is_printed(printed: Printed, text: str) -> None:
    """Each way to print, and each way around them that a library or a forgotten caller has."""
    logger = logging.Logger("x")
    with inert_output():
        logger.addHandler(logging.StreamHandler())
        with ConsoleListener() as listener, listener.task(text, 2) as advance:
            advance(2)
            listener.say(text)
            listener.say(Text(text))
        print_line(f"Report: {text}")
        print_error(text)
        print_tables([Table.of(text, words(text), [[text]], text)], [text])
        console.print(text)
        console.print(Text(text, style="link http://x.test"))
        print(text)
        print(text, file=sys.stderr)
        sys.stderr.writelines([text])
        # As `warnings.warn` prints it; pytest would show it instead.
        print(warnings.formatwarning(text, UserWarning, "", 0), file=sys.stderr, end="")
        logger.warning("%s", text)
    shown = printed()
    assert len(shown) < 300_000


def test_streams_and_libraries_are_as_before() -> None:
    before = sys.stdout, sys.stderr, logging.getLogRecordFactory(), warnings.formatwarning
    with pytest.raises(SafetyNeuronsError), inert_output():
        raise SafetyNeuronsError("x")
    assert before == (sys.stdout, sys.stderr, logging.getLogRecordFactory(), warnings.formatwarning)


@pytest.mark.parametrize("text", READABLE.values(), ids=READABLE)
def test_every_script_is_printed(printed: Printed, text: str) -> None:
    with inert_output():
        print_line(text)
        print(text)
    assert printed().splitlines() == [text, text]


def test_progress_bars_and_colors_of_libraries_are_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    with inert_output():
        sys.stderr.write("\r 50%\x1b[A\x1b[1;32m|\x1b[0m\t")
    assert capsys.readouterr().err == "\r 50%\x1b[A\x1b[1;32m|\x1b[0m\t"


def test_log_messages_cannot_pass_for_ours(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("x")
    with inert_output():
        logger.addHandler(logging.StreamHandler(sys.stderr))
        logger.warning("\x1b[33mread %s", "a\nError: b\x9b")
    assert capsys.readouterr().err == "read a\n  Error: b\\u009b\n"


@pytest.mark.parametrize("arguments", [["--help"], ["evaluate", "--help-all"], ["list", "attacks"]])
def test_help_and_lists_are_as_they_were(
    printed: Printed, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    assert inside(monkeypatch, *arguments) == 0
    said = printed()
    assert "safety-neurons" in said or "base64" in said
    assert "\\u" not in said
