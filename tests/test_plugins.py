"""Families found by their files, and names that are nearly right."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.plugins import choose, discover, unknown_name


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    folder = tmp_path / "some_family_of_tests"
    folder.mkdir()
    member = "from types import SimpleNamespace\nMEMBER = SimpleNamespace(name={name!r})\n"
    (folder / "__init__.py").write_text("")
    (folder / "zeta.py").write_text(member.format(name="first"))
    (folder / "alpha.py").write_text(member.format(name="second-one"))
    (folder / "helpers.py").write_text("NOTHING = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module(folder.name)
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


def test_members_are_found_in_the_order_of_their_files(family: ModuleType) -> None:
    members = discover(family, "MEMBER")
    assert list(members) == ["second-one", "first"]
    assert all(member.name == name for name, member in members.items())
    assert discover(family, "OTHER") == {}


def test_adding_a_file_adds_a_member(family: ModuleType, tmp_path: Path) -> None:
    before = set(discover(family, "MEMBER"))
    new = tmp_path / family.__name__ / "middle.py"
    new.write_text("from types import SimpleNamespace\nMEMBER = SimpleNamespace(name='third')\n")
    importlib.invalidate_caches()
    assert set(discover(family, "MEMBER")) == before | {"third"}


def test_a_known_name_is_chosen(family: ModuleType) -> None:
    members = discover(family, "MEMBER")
    assert choose(members, "first", "member") is members["first"]


def test_an_unknown_name_is_an_error_with_the_near_ones(family: ModuleType) -> None:
    with pytest.raises(
        SafetyNeuronsError, match=r"^There is no member called 'second_one'\. Did you mean second-one\?"
    ):
        choose(discover(family, "MEMBER"), "second_one", "member")


def test_a_name_that_is_near_nothing_gets_the_whole_list() -> None:
    assert unknown_name("attack", "xyzzy", ["direct", "prefix"]) == (
        "There is no attack called 'xyzzy'. Known: direct, prefix."
    )
    assert "Did you mean direct or direkt?" in unknown_name("attack", "direct!", ["prefix", "direkt", "direct"])
