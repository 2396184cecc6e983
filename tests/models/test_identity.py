"""The identity of what a setting names: exact for data, and bounded whatever it names."""

import os
from pathlib import Path

import pytest

from safety_neurons.core import files
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models import identity
from safety_neurons.models.identity import path_identity


def test_every_byte_of_data_counts(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    file = tmp_path / "inside" / "task.yaml"
    content = bytearray(3 << 20)
    found = set()
    for place in (None, 0, 1_000_001, len(content) - 1):
        if place is not None:
            content[place] = 1
        file.write_bytes(content)
        found.add(path_identity(tmp_path))
    file.rename(file.with_name("other.yaml"))
    found.add(path_identity(tmp_path))
    assert len(found) == 5


def test_a_folder_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_MOST_FILES", 3)
    for number in range(3):
        (tmp_path / str(number)).write_text("")
    assert path_identity(tmp_path)
    (tmp_path / "more").mkdir()
    with pytest.raises(SafetyNeuronsError, match=f"{tmp_path}.*more than 3 files"):
        path_identity(tmp_path)


def test_pipes_do_not_count(tmp_path: Path) -> None:
    before = path_identity(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert path_identity(tmp_path) == before


def test_a_large_file_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MAY_BE_SPARSE", 1 << 40)
    size = 1 << 36
    for name, last in (("one", b"1"), ("two", b"2")):
        with (tmp_path / name).open("wb") as file:
            file.write(last)
            file.truncate(size)
    assert path_identity(tmp_path / "one") != path_identity(tmp_path / "two")


def test_what_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: object, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(SafetyNeuronsError, match=f"{tmp_path} cannot be read"):
        path_identity(tmp_path)
