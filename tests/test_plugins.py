"""Families: members by name, by entry point, and from a file; and names that are nearly right."""

import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from safety_neurons.core import plugins
from safety_neurons.core import trust as trust_module
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.plugins import Family, options_of, unknown_name
from safety_neurons.evaluation import judges
from safety_neurons.report.record import PROMPT_SETS
from safety_neurons.runs.folder import merged_settings, stage_fingerprints
from safety_neurons.settings import Settings


@dataclass(frozen=True)
class Member:
    name: str
    version: int = 1


@dataclass(frozen=True)
class Sized(Member):
    size: int = 3


FILE = "from {module} import Member, Sized\n{attribute} = {value}\n"


def text(value: str, attribute: str = "MEMBER") -> str:
    return FILE.format(module=__name__, attribute=attribute, value=value)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    folder = tmp_path / "some_family_of_tests"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "zeta.py").write_text(text("Sized('first')"))
    (folder / "alpha.py").write_text(text("(Member('second-one'), Sized('second-two'))", "MEMBERS"))
    (folder / "helpers.py").write_text("NOTHING = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module(folder.name)
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


@pytest.fixture
def family(package: ModuleType) -> Family[Member]:
    return Family("member", package, Member)


@pytest.fixture(autouse=True)
def _forget_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_module, "_recorded", set())
    monkeypatch.setattr(trust_module, "_named", set())


def test_members_are_found_in_the_order_of_their_files(family: Family[Member]) -> None:
    assert family.names() == ["second-one", "second-two", "first"]
    assert [family.get(name).name for name in family.names()] == family.names()


def test_adding_a_file_adds_a_member(family: Family[Member], package: ModuleType, tmp_path: Path) -> None:
    (tmp_path / package.__name__ / "middle.py").write_text(text("Member('third')"))
    importlib.invalidate_caches()
    assert family.get("third") == Member("third")


def test_options_are_the_fields_that_a_class_adds(family: Family[Member]) -> None:
    assert options_of(family.get("first")) == {"size": 3}
    assert options_of(family.get("second-one")) == {}
    assert family.get("first:size=5") == Sized("first:size=5", size=5)
    with pytest.raises(
        SafetyNeuronsError, match=r"'weight=5' is not an option of the member first\. Its options: size"
    ):
        family.get("first:weight=5")
    with pytest.raises(SafetyNeuronsError, match="It has no options"):
        family.get("second-one:version=2")
    with pytest.raises(SafetyNeuronsError, match="member first: size cannot be 'big'"):
        family.get("first:size=big")


def test_an_unknown_name_is_an_error_with_the_near_ones(family: Family[Member]) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"^There is no member called 'second_one'\. Did you mean second-one"):
        family.get("second_one")


def test_a_name_that_is_near_nothing_gets_the_whole_list() -> None:
    assert unknown_name("attack", "xyzzy", ["direct", "prefix"]) == (
        "There is no attack called 'xyzzy'. Known: direct, prefix."
    )
    assert "Did you mean direct or direkt?" in unknown_name("attack", "direct!", ["prefix", "direkt", "direct"])


def test_a_member_from_a_file_is_called_by_the_whole_name_and_versioned_by_its_content(
    family: Family[Member], tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text("Sized('mine')", "MINE"))
    found = family.get(f"{path}:MINE")
    assert isinstance(found, Sized)
    assert (found.name, found.size) == (f"{path}:MINE", 3)
    assert options_of(family.get(f"{path}:MINE:size=7")) == {"size": 7}
    assert family.get(f"{path}:MINE") == found
    path.write_text(text("Sized('mine', size=4)", "MINE"))
    edited = family.get(f"{path}:MINE")
    assert options_of(edited) == {"size": 4}
    assert edited.version != found.version


@pytest.mark.parametrize(
    ("content", "attribute", "told"),
    [
        (None, "MINE", "does not exist"),
        ("MINE = 3\n", "MINE", "not a Member but a int"),
        ("MINE = 3\n", "OTHER", "does not define OTHER"),
        ("MINE = 3\n", "", "NAME"),
        ("MINE = \n", "MINE", "cannot be loaded .SyntaxError"),
        ("import no_such_package\n", "MINE", "no_such_package"),
        ("\n{}['a']\n", "MINE", "cannot be loaded .KeyError in line 2.: 'a'"),
        ("import sys\nsys.exit(0)\n", "MINE", "cannot be loaded .SystemExit in line 2.: 0"),
    ],
)
def test_a_bad_file_is_an_error(
    family: Family[Member], tmp_path: Path, content: str | None, attribute: str, told: str
) -> None:
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SafetyNeuronsError, match=told):
        family.get(f"{path}:{attribute}".removesuffix(":"))


def test_an_entry_point_is_a_member(family: Family[Member], monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        importlib.metadata.EntryPoint("theirs", f"{__name__}:THEIRS", "safety_neurons.members"),
        importlib.metadata.EntryPoint("first", "no_such_package:MEMBER", "safety_neurons.members"),
        importlib.metadata.EntryPoint("gone", "no_such_package:MEMBER", "safety_neurons.members"),
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: [one for one in points if one.group == group])
    assert family.names() == ["second-one", "second-two", "first", "gone", "theirs"]
    assert family.get("theirs:size=2") == Sized("theirs:size=2", size=2)
    # The built-in member is not replaced.
    assert family.get("first") == Sized("first")
    with pytest.raises(SafetyNeuronsError, match="The member gone cannot be loaded from its package"):
        family.get("gone")


THEIRS = Sized("any name")


@pytest.fixture
def mark(tmp_path: Path) -> tuple[Path, Path]:
    """A file with a judge, and another that is written when its code is executed."""
    file, executed = tmp_path / "theirs.py", tmp_path / "executed"
    builder = Path(__file__).parent / "builders" / "judges.py"
    file.write_text(f"{builder.read_text()}\nopen({str(executed)!r}, 'a').close()\n")
    return file, executed


def test_code_that_a_record_names_runs_only_when_it_is_named_again(mark: tuple[Path, Path]) -> None:
    """A run folder of somebody else's must not execute anything."""
    file, executed = mark
    recorded = {"evaluate": {"judge": f"{file}:BY_HASH"}}
    settings = merged_settings(recorded, {})
    with pytest.raises(SafetyNeuronsError, match=r"name code in a file: .*theirs\.py.*name the judge again"):
        judges.rules(settings.evaluate.judge)
    assert not executed.exists()
    settings = merged_settings(recorded, recorded)
    assert judges.rules(settings.evaluate.judge).judge("Why?", "Because.").reason == "hash"
    assert executed.exists()
    # What the user named stays named when the same process reads the record again.
    assert judges.rules(merged_settings(recorded, {}).evaluate.judge)


def test_an_edited_file_makes_the_stage_due_again(mark: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    file, executed = mark
    prompts = {name: importlib.import_module("safety_neurons.prompts").load_prompts(name) for name in PROMPT_SETS}
    settings = Settings.checked({"find": {"score": f"{file}:SCORE"}})
    before, plain = (stage_fingerprints(one, "identity", prompts) for one in (settings, Settings()))
    file.write_text(file.read_text() + "# edited\n")
    after = stage_fingerprints(settings, "identity", prompts)
    assert before["find"] != after["find"]
    assert plain == stage_fingerprints(Settings(), "identity", prompts)
    assert not executed.exists()
