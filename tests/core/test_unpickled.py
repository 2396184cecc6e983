"""No module of the package uses what reads or writes pickles, or other formats that can run code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import safety_neurons

PACKAGE = Path(safety_neurons.__file__).parent
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "multiprocessing", "shelve"}
# The object collectives of torch.distributed pickle what they send.
NAMES = {
    "Pickler",
    "Unpickler",
    "all_gather_object",
    "allow_pickle",
    "broadcast_object_list",
    "gather_object",
    "read_pickle",
    "recv_object_list",
    "save_checkpoint",
    "scatter_object_list",
    "send_object_list",
    "to_pickle",
}
OWNERS = {"torch", "numpy", "np"}


def pickling(source: str) -> list[str]:
    """What of it occurs in a module's source, by line."""
    return [f"{line}: {name}" for line, name in sorted(_occurrences(ast.parse(source)))]


def _occurrences(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found = [name.name for name in names]
            case ast.ImportFrom(module=module, names=names):
                found = [f"{module}.{name.name}" for name in names]
            case ast.Attribute(value=ast.Name(id=owner), attr=name):
                found = [f"{owner}.{name}"]
            case ast.Attribute(attr=name) | ast.Name(id=name):
                found = [name]
            case ast.keyword(arg=str(name)):
                found = [name]
            case _:
                continue
        for name in found:
            owner, _, last = name.rpartition(".")
            if {*name.split(".")} & (MODULES | NAMES) or (owner in OWNERS and last in ("load", "save")):
                yield node.lineno, name


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_pickled(path: Path) -> None:
    assert pickling(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def read():\n    from pickle import loads",
        "import multiprocessing.shared_memory",
        "from joblib import dump",
        "from torch import distributed\ndistributed.all_gather_object(given, mine)",
        "import torch.distributed\ntorch.distributed.broadcast_object_list([1], src=0)",
        "from torch.distributed import scatter_object_list",
        "import torch\ntorch.load('x')",
        "from torch import save",
        "import numpy\nnumpy.load('x', mmap_mode='r')",
        "frame.to_pickle('x')",
        "read(path, allow_pickle=True)",
    ],
)
def test_pickling_is_noticed(source: str) -> None:
    assert pickling(source)


def test_reading_safetensors_and_json_is_not_pickling() -> None:
    assert (
        pickling("import json, safetensors.torch\njson.load(f)\nsafetensors.torch.load(data)\nmodel.save(path)") == []
    )
