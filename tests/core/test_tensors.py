"""Files of tensors: what is written comes back to the bit, whatever memory it lies in."""

from pathlib import Path

import torch

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
