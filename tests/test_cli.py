"""The command line: what arrives at the run, and how it fails."""

import functools
import importlib
import inspect
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docstring_parser.attrdoc import AttributeDocstrings
from pydantic import BaseModel
from rich.console import Console

from builders import report
from builders.commands import inside, one_paragraph
from safety_neurons import cli
from safety_neurons.cli.app import COMMON, commands
from safety_neurons.models.presets import PRESETS
from safety_neurons.prompts.named import PUBLIC
from safety_neurons.report.results import RunResults
from safety_neurons.settings import PROFILES, Settings

pipeline_module = importlib.import_module("safety_neurons.runs.pipeline")

COMMAND = [sys.executable, "-c", "from safety_neurons.cli import main; main()"]


def outside(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, without a network."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, check=False
    )


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Call:
    """What the pipeline was asked for."""

    def __init__(self) -> None:
        self.folder = Path()
        self.given: dict[str, Any] = {}
        self.options: dict[str, Any] = {}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The runs that would have been started."""
    made: list[Call] = []

    def run(folder: Path, given: dict[str, Any], **options: Any) -> RunResults:
        call = Call()
        call.folder, call.given, call.options = folder, given, options
        made.append(call)
        return RunResults.of(report.whole_run())

    monkeypatch.setattr(pipeline_module, "run", run)
    return made


def test_help_names_every_command() -> None:
    done = outside("--help")
    assert done.returncode == 0
    for command in (
        "run",
        "find",
        "explain",
        "calibrate",
        "tune",
        "evaluate",
        "report",
        "compare",
        "guard",
        "merge",
        "tokens",
        "judge",
        "list",
        "experiment",
    ):
        assert f" {command} " in done.stdout


def test_models_lists_every_preset(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    assert inside(monkeypatch, "list", "models") == 0
    shown = capsys.readouterr().out
    assert all(preset.name in shown and preset.hub_id in shown for preset in PRESETS.values())


def test_help_names_every_public_set(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert inside(monkeypatch, "run", "--help-all") == 0
    shown = capsys.readouterr().out
    assert "--data-dir" in shown
    assert [row.name for row in PUBLIC if not re.search(rf"[( ]{row.name}[,)]", shown)] == []


def option_names(section: type[BaseModel], prefix: str = "--") -> Iterator[str]:
    for name, field in section.model_fields.items():
        kind, shown = field.annotation, f"{prefix}{name.replace('_', '-')}"
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from option_names(kind, f"{shown}.")
        else:
            yield shown


SETTINGS = {*option_names(Settings)}


@pytest.fixture(autouse=True, scope="module")
def _docstrings_are_read_once() -> Iterator[None]:
    """Read again for each help page, they take half of its time."""
    original = AttributeDocstrings.get_attr_docs
    read = functools.cache(lambda documented: original(AttributeDocstrings(), documented))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttributeDocstrings, "get_attr_docs", lambda _, documented: read(documented))
        yield


def help_page(monkeypatch: pytest.MonkeyPatch, name: str, flag: str, width: int = 80) -> list[str]:
    """The lines of a command's help."""
    page = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["safety-neurons", *name.split(), flag])
    cli.app.help_print([*name.split()], console=Console(file=page, width=width))
    return page.getvalue().splitlines()


def options(page: list[str]) -> set[str]:
    """The options that a help page shows; of a switch only the first of both names."""
    rows = [re.match(r"│[ *]*(?:[A-Z-]+ )?(--[a-z0-9][a-z0-9.-]*)", line) for line in page]
    return {row[1] for row in rows if row and not re.search(r"[-.]no-", row[1])}


def test_help_shows_few_options_and_help_all_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    visible: set[str] = set()
    for name, command in commands():
        shown = options(help_page(monkeypatch, name, "--help", 120))
        assert len(shown) <= (20 if name == "run" else 25 if name == "evaluate" else 16), name
        # The commands without settings have this one as an option of their own.
        visible |= (SETTINGS & shown) - ({"--trust-remote-code"} if name in ("tokens", "merge") else set())
        if "settings" in inspect.signature(command.default_command or print).parameters:
            assert options(help_page(monkeypatch, name, "--help-all", 120)) == SETTINGS | shown, name
    assert visible == {f"--{field.replace('_', '-')}" for field in COMMON}
    assert len(visible) <= 36


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_help_fits_the_terminal_and_has_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = help_page(monkeypatch, name, "--help")
    assert [line for line in page if len(line) > 80] == []
    assert name.startswith("list ") or f" safety-neurons {name}" in "\n".join(page).split("For example:")[1]


@pytest.mark.parametrize("arguments", [("run", "--help-all"), ("experiment", "search", "--help-all")])
def test_help_all_is_an_option(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inside(monkeypatch, *arguments) == 0
    assert "--tune.max-grad-norm" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["attacks", "defenses", "judges", "scores"])
def test_members_are_listed(family: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    assert inside(monkeypatch, "list", family) == 0
    shown = capsys.readouterr().out
    package = "neurons.scores" if family == "scores" else f"evaluation.{family}"
    names = importlib.import_module(f"safety_neurons.{package}").names()
    assert names
    assert [name for name in names if name not in shown] == []


def test_unknown_model_is_told_in_one_paragraph(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert inside(monkeypatch, "run", "--model", "no-such-model", "--out", "new") == 2
    shown = capsys.readouterr().err
    assert one_paragraph(shown)
    assert "no-such-model" in shown
    assert list(tmp_path.iterdir()) == []


def test_model_that_cannot_be_fetched_is_told_and_the_folder_stays_usable(tmp_path: Path) -> None:
    """In a process of its own, as a user starts it."""
    done = outside("run", "--model", "acme/no-such-model", "--out", "new", cwd=tmp_path)
    assert done.returncode == 2
    assert one_paragraph(done.stderr)
    assert "acme/no-such-model" in done.stderr
    left = {path.name for path in (tmp_path / "new").iterdir()} if (tmp_path / "new").exists() else set()
    assert left <= {".lock"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "--harmful", "missing.csv"], "missing.csv"),
        (["run", "--harmful", "no-such-set"], "no-such-set"),
        (["run", "--config", "missing.toml"], "missing.toml"),
        (["run", "--evaluate.attacks", "no-such-attack"], "no-such-attack"),
        (["run", "--evaluate.judge", "no-such-judge"], "no-such-judge"),
        (["run", "--find.percent", "many"], "percent"),
        (["run", "--find.percent", "500"], "percent"),
        (["run", "--find.scope", "galaxy"], "scope"),
        (["run", "--tune.learning-rate", "inf"], "learning"),
        (["run", "--no-such-option", "3"], "no-such-option"),
        (["run", "--find.no-such-option", "3"], "no-such-option"),
        (["run", "--out"], "out"),
        (["find"], "run"),
        (["no-such-command"], "no-such-command"),
        (["report", "missing-folder"], "missing-folder"),
        (["merge", "missing-folder", "merged"], "missing-folder"),
        (["tokens", "missing-folder", "Hello"], "missing-folder"),
        (["tokens", "missing-folder", "Hello", "--top", "0"], "top"),
        (["list", "no-such-family"], "no-such-family"),
        (["experiment", "dose-response", "missing-folder"], "alphas"),
        (["evaluate", "missing-folder", "--evaluate.attacks", "no-such-attack"], "no-such-attack"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_fail_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    # These mistakes come to light without any model: nothing is unpacked or loaded.
    monkeypatch.setattr(pipeline_module, "locate", lambda name, _listener: (name, "identity"))
    monkeypatch.setattr(pipeline_module, "_run", lambda *_: pytest.fail("the run began"))
    code = inside(monkeypatch, *arguments)
    shown = capsys.readouterr()
    assert code not in (0, None)
    assert told in (shown.err + shown.out).lower().replace("_", "-")
    assert "Traceback" not in shown.err + shown.out
    assert list(tmp_path.iterdir()) == []


def test_options_arrive_as_they_were_given_and_no_more(monkeypatch: pytest.MonkeyPatch, calls: list[Call]) -> None:
    """Options that were not given must not overwrite what the folder remembers."""
    code = inside(
        monkeypatch,
        *("run", "--out", "somewhere", "--find.percent", "3", "--calibrate.alpha-rejection", "2.5", "--seed", "4"),
        *("--evaluate.attacks", "direct", "--evaluate.attacks", "prefill", "--show-responses"),
    )
    assert code == 0
    assert calls[0].folder == Path("somewhere")
    assert calls[0].given == {
        "find": {"percent": 3.0},
        "calibrate": {"alpha_rejection": 2.5},
        "seed": 4,
        "evaluate": {"attacks": ["direct", "prefill"]},
        "show_responses": True,
    }
    assert calls[0].options["until"] == "report"
    assert "--find.percent 3" in calls[0].options["command"]


def test_options_override_the_profile(monkeypatch: pytest.MonkeyPatch, calls: list[Call]) -> None:
    assert inside(monkeypatch, "run", "--profile", "quick", "--tune.refusals", "7", "--seed", "2") == 0
    quick = PROFILES["quick"]
    assert calls[0].given == {**quick, "tune": quick["tune"] | {"refusals": 7}, "seed": 2}
    assert inside(monkeypatch, "run", "--profile", "fast") not in (0, None)


def test_run_without_options_gives_none(monkeypatch: pytest.MonkeyPatch, calls: list[Call]) -> None:
    assert inside(monkeypatch, "run") == 0
    assert calls[0].given == {}


@pytest.mark.parametrize("stage", ["find", "explain", "calibrate", "tune"])
def test_each_stage_is_a_command(monkeypatch: pytest.MonkeyPatch, calls: list[Call], stage: str) -> None:
    assert inside(monkeypatch, stage, "runs/mine", "--find.percent", "1") == 0
    assert calls[0].folder == Path("runs/mine")
    assert calls[0].options["until"] == stage
    assert calls[0].given == {"find": {"percent": 1.0}}


@pytest.mark.parametrize(("argument", "value"), [("--thinking=false", False), ("--thinking", True)])
def test_thinking_is_switched_on_and_off(
    monkeypatch: pytest.MonkeyPatch, calls: list[Call], argument: str, value: bool
) -> None:
    assert inside(monkeypatch, "run", argument) == 0
    assert calls[0].given == {"thinking": value}


@pytest.mark.parametrize(
    "arguments", [("run", "stray"), ("find", "runs/mine", "stray"), ("run", "--thinking", "false")]
)
def test_stray_word_is_not_taken_for_a_model(
    monkeypatch: pytest.MonkeyPatch, calls: list[Call], arguments: tuple[str, ...]
) -> None:
    code = inside(monkeypatch, *arguments)
    assert code != 0 or "model" not in calls[0].given


TOML = """
model = "from-file"
seed = 9
[find]
percent = 5
positions = 2
[evaluate]
attacks = ["direct"]
"""


def test_settings_file_is_read_and_options_go_before_it(
    monkeypatch: pytest.MonkeyPatch, calls: list[Call], tmp_path: Path
) -> None:
    # Some editors put a mark before UTF-8.
    (tmp_path / "settings.toml").write_text(f"\ufeff{TOML}", encoding="utf-8")
    code = inside(monkeypatch, "run", "--config", str(tmp_path / "settings.toml"), "--find.percent", "7", "--seed", "1")
    assert code == 0
    assert calls[0].given == {
        "model": "from-file",
        "seed": 1,
        "find": {"percent": 7.0, "positions": 2},
        "evaluate": {"attacks": ["direct"]},
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[find]\npercnt = 3", "percnt"),
        ("color = 'red'", "color"),
        ("[find]\npercent = 'many'", "percent"),
        ("find = 3", "find"),
        ("[model]\nname = 'x'", "model"),
        ("seed = = 3", "settings.toml"),
    ],
    ids=lambda text: text.replace("\n", " "),
)
@pytest.mark.parametrize("option", [(), ("--find.positions", "3")], ids=["alone", "with an option"])
def test_mistake_in_the_settings_file_is_told_in_one_paragraph(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    text: str,
    told: str,
    option: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.toml").write_text(text)
    assert inside(monkeypatch, "run", "--config", "settings.toml", "--out", "new", *option) == 2
    shown = capsys.readouterr().err
    assert one_paragraph(shown)
    assert told in shown
    assert [path.name for path in tmp_path.iterdir()] == ["settings.toml"]


@pytest.mark.parametrize("kind", ["binary", "folder"])
def test_settings_file_that_is_no_text_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "settings.toml"
    if kind == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    else:
        path.mkdir()
    assert inside(monkeypatch, "run", "--config", str(path), "--out", str(tmp_path / "new")) == 2
    shown = capsys.readouterr().err
    assert one_paragraph(shown)
    assert "settings.toml" in shown.replace("\n", "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed = " + "9" * 5000, "not valid TOML"),
        ("a" + ".a" * 3000 + " = 1", "nested too deeply"),
        ("a = " + "[" * 5000, "nested too deeply"),
        ("seed = 0x" + "f" * 5000, "seed is too large"),
    ],
)
def test_settings_file_of_monstrous_values_is_told(
    text: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    assert inside(monkeypatch, "run", "--config", str(path), "--out", str(tmp_path / "new")) == 2
    shown = capsys.readouterr().err
    assert one_paragraph(shown)
    assert told in " ".join(shown.split())
    assert "settings.toml" in shown.replace("\n", "")


@pytest.mark.parametrize(("rank", "size"), [(None, "2"), ("0", "abc"), ("2", "2"), ("0", "9" * 30)])
def test_processes_that_torchrun_did_not_start(
    rank: str | None, size: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert inside(monkeypatch, "list", "attacks") == 2
    shown = capsys.readouterr().err
    assert one_paragraph(shown)
    assert "Start with torchrun" in " ".join(shown.split())


def test_stopping_by_hand_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline_module, "run", run)
    assert inside(monkeypatch, "run") not in (0, None)
    shown = capsys.readouterr().err
    assert one_paragraph(shown)
    assert "again" in shown


def test_markup_in_names_is_shown_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Square brackets are markup to the terminal library: a name with them must come out whole."""
    assert inside(monkeypatch, "run", "--model", "[red]x", "--out", str(tmp_path / "new")) == 2
    assert "[red]x" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a b/c", "[red]/x", "ä/ö", "a--b/..c"])
def test_name_that_no_hub_would_take_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr(pipeline_module, "_run", lambda *_: pytest.fail("the run began"))
    assert inside(monkeypatch, "run", "--model", name, "--out", str(tmp_path / "new")) == 2
    shown = capsys.readouterr().err
    assert one_paragraph(shown)
    assert name in shown
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def anew() -> Iterator[None]:
    """Nothing of the package is imported; what it imports is."""

    def taken() -> dict[str, Any]:
        return {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] == "safety_neurons"}

    before = taken()
    yield
    taken()
    sys.modules.update(before)


def test_command_line_starts_without_torch() -> None:
    heavy = python(
        "import sys, safety_neurons, safety_neurons.cli;"
        "print([name for name in ('torch', 'transformers', 'scipy', 'numpy', 'plotly') if name in sys.modules])"
    )
    assert heavy == "[]"


def test_functions_stay_functions_when_their_folders_are_imported(anew: None) -> None:
    sn = importlib.import_module("safety_neurons")
    for name in (
        "neurons.find",
        "explanation.projection",
        "calibration.calibration",
        "tuning.safetune",
        "runs.pipeline",
    ):
        importlib.import_module(f"safety_neurons.{name}")
    functions = ("find", "explain", "calibrate", "tune", "run")
    assert [type(getattr(sn, name)).__name__ for name in functions] == ["function"] * 5
    assert all(getattr(sn, name) is not None for name in sn.__all__)
    found: dict[str, Any] = {}
    exec("from safety_neurons import find", found)
    assert type(found["find"]).__name__ == "function"


def test_unknown_name_of_the_package_is_an_attribute_error() -> None:
    import safety_neurons as sn

    with pytest.raises(AttributeError, match="no_such_name"):
        _ = sn.no_such_name
    assert {*sn.__all__} == {*sn._MODULES}
