"""What the command line prints under every encoding, into a closed pipe, to a full disk, and to nothing."""

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from builders.commands import inside
from safety_neurons.cli.console import ConsoleListener, console, print_tables
from safety_neurons.core.tables import Table, numbers, words

LIST = [sys.executable, "-c", "from safety_neurons.cli import main; main()", "list", "attacks"]
# Typography of our own, other scripts, and what no encoding has: a lone surrogate, and a byte of a file's name.
HARD = "caf\u00e9 \u2013 \u2026 \u2212 \u2605 \u6f22\u5b57 \U0001f600 \ud800 \udcff"
COMMANDS = (
    (("--help",), 0),
    (("find", "--help"), 0),
    (("--version",), 0),
    (("list", "attacks"), 0),
    (("list", "scores"), 0),
    (("report", HARD.replace("\ud800", "")), 2),
    (("run", "--find.percent", "2\u20133"), 2),
)


@pytest.mark.parametrize(
    ("encoding", "errors", "plain"),
    [
        ("ascii", "strict", "caf? - . - * ?? ? \\ud800 \\udcff"),
        ("cp1252", "strict", "caf\u00e9 \u2013 \u2026 - * ?? ? \\ud800 \\udcff"),
        ("cp437", "strict", "caf\u00e9 - . - * ?? ? \\ud800 \\udcff"),
        ("utf-8", "surrogateescape", "caf\u00e9 \u2013 \u2026 \u2212 \u2605 \u6f22\u5b57 \U0001f600 \\ud800 \\udcff"),
        ("ascii", "xmlcharrefreplace", "caf&#233; &#8211;"),
    ],
)
def test_everything_is_printed_in_every_encoding(
    monkeypatch: pytest.MonkeyPatch, encoding: str, errors: str, plain: str
) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, how) for how in (errors, "backslashreplace"))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: print(f"Note: {message}", file=sys.stderr))
    monkeypatch.setenv("COLUMNS", "80")
    for arguments, code in COMMANDS:
        assert inside(monkeypatch, *arguments) == code, arguments
    with ConsoleListener() as listener, listener.task(HARD, 2) as advance:
        advance(1)
        listener.say(HARD)
    warnings.warn(HARD, stacklevel=1)
    table = Table.of(HARD, (*words("a"), *numbers("b")), [[HARD, "44\N{EN DASH}52%"], ["y", "1"]], HARD)
    print_tables([table], [HARD])
    print(HARD)
    console.print(f"Report: {HARD}", soft_wrap=True)
    out.flush()
    err.flush()
    printed, told = (one.buffer.getvalue().decode(encoding) for one in (out, err))
    assert printed.count("Error") == 0
    assert told.count("Error: ") == 2
    assert next(line for line in printed.splitlines() if line.startswith("Report: ")).startswith(f"Report: {plain}")
    assert "Note: caf" in told
    if encoding != "utf-8" and errors == "strict":
        assert "find.percent cannot be '2-3'" in told.replace("\N{EN DASH}", "-")
        # What rich draws (frames, rules, bars, bullets) is drawn with what there is.
        frames = [line for line in printed.splitlines() if set(line) & set("+|") and "--" in line]
        assert frames
        assert not any("?" in line for line in frames)


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIO"))}
    return kept | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "80"} | more


def test_c_locale_without_utf_8() -> None:
    """Python's own help against this is switched off, as some systems do."""
    plain = environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    command = [*LIST[:3], "report", "caf\u00e9 \u6f22"]
    done = subprocess.run(command, capture_output=True, env=plain, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.decode("ascii").startswith(
        "Error: The name of the folder 'caf\\udcc3\\udca9 \\udce6\\udcbc\\udca2'"
    )


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_closed_pipe_ends_the_command_without_a_traceback() -> None:
    with subprocess.Popen(LIST, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(120) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_full_disk_is_told_in_one_paragraph() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(LIST, stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.decode().startswith("Error: Standard output cannot be written (No space left on device).")
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX closes the streams")
def test_closed_streams_are_no_error() -> None:
    command = ["sh", "-c", '"$0" "$@" >&- 2>&-', *LIST]
    done = subprocess.run(command, capture_output=True, env=environment(), timeout=120, check=False)
    assert done.returncode == 0
