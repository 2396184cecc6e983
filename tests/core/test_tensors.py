"""Files of tensors: what is written comes back to the bit, whatever memory it lies in."""

import os
import struct
from pathlib import Path

import pytest
import torch

from safety_neurons.core import tensors as module
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.records import Record
from safety_neurons.core.tensors import StoredTensors, write_tensors


class About(Record):
    name: str


def test_tensors_that_share_memory_come_back(tmp_path: Path) -> None:
    big = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": big, "again": big, "rows": big[1:], "turned": big.T, "number": big[0, 1], "none": big[:0]}
    digest = write_tensors(tmp_path / "file", "test", tensors, About(name="n"))
    stored = StoredTensors.read(tmp_path / "file", "test", "Write it again.")
    assert (stored.digest, stored.about(About)) == (digest, About(name="n"))
    assert stored.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(stored.get(name, torch.float32, tuple(value.shape)), value)
        assert stored.tensors[name].data_ptr() % 4 == 0


def test_a_file_of_holes_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 1 << 30
    header = f'{{"x":{{"dtype":"U8","shape":[{size}],"data_offsets":[0,{size}]}}}}'.encode()
    (tmp_path / "file").write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(tmp_path / "file", 8 + len(header) + size)
    monkeypatch.setattr(module, "safe_open", None)
    with pytest.raises(SafetyNeuronsError, match="it is a file of holes"):
        StoredTensors.read(tmp_path / "file", "test", "Write it again.")


def test_no_file_larger_than_half_of_the_memory_is_read() -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert min(16 << 30, memory // 2) == module.MOST_BYTES
