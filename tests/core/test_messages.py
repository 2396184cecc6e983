"""Messages between processes: exact, of the declared type, and harmless whatever they hold."""

import json
import math
import pickle
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from builders.processes import run_together
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.messages import pack, unpack
from safety_neurons.settings import Settings

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Part:
    weights: tuple[Tensor, ...]
    by_name: dict[str, Tensor]


@dataclass(frozen=True)
class Whole:
    part: Part | None
    texts: tuple[str, ...] = ()
    other: dict[str, Any] = field(default_factory=dict)


def sent(value: Any, kind: Any) -> Any:
    return unpack(pack(value, kind), kind, sender=1)


def test_numbers_arrive_to_the_bit() -> None:
    draw = random.Random(0)
    floats = [math.ldexp(draw.uniform(-1, 1), draw.randint(-1060, 1020)) for _ in range(1000)]
    floats += [5e-324, -0.0, 0.1 + 0.2, math.inf, -math.inf]
    assert [value.hex() for value in sent(floats, list[float])] == [value.hex() for value in floats]
    assert math.isnan(sent(math.nan, float))
    assert math.isnan(sent({"loss": math.nan}, dict[str, Any])["loss"])
    assert sent({2**62: -(2**80)}, dict[int, int]) == {2**62: -(2**80)}


def test_tensors_arrive_to_the_bit() -> None:
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    weights = (
        base,
        base[:, 1],
        base.T.bfloat16(),
        torch.randn(3, dtype=torch.float64),
        torch.tensor(math.nan),
        torch.empty(0, 5, dtype=torch.int64),
        torch.tensor([True, False]),
    )
    part = Part(weights, {"a": torch.arange(3), "b": base.requires_grad_()})
    found = sent(Whole(part), Whole)
    for value, expected in [*zip(found.part.weights, weights, strict=True), (found.part.by_name["b"], base)]:
        assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
        assert (
            value.detach().numpy(force=True).tobytes() == expected.detach().contiguous().numpy(force=True).tobytes()
            if (value.dtype != torch.bfloat16)
            else torch.equal(value, expected)
        )
    assert sent(Whole(None), Whole) == Whole(None)


def test_texts_arrive_as_they_are() -> None:
    texts = ("", "\0\x1b\u202e", "half a pair: \ud800", "😀", '{"tensor": 0}', "\u2028")
    other = {"1": None, "tensor": {"0": None}, "text": {"\ud800": ["\udfff"]}}
    assert sent(Whole(None, texts, other), Whole) == Whole(None, texts, other)


def test_settings_know_which_of_them_were_set() -> None:
    settings = Settings(seed=3, find={"percent": 0.7}, tune={"corpus": Path("a/b.jsonl")})
    found = sent(settings, Settings)
    assert found == settings
    assert found.model_fields_set == {"seed", "find", "tune"}
    assert found.find.model_fields_set == {"percent"}
    assert found.tune.corpus == Path("a/b.jsonl")


@pytest.mark.parametrize(
    "value",
    [print, object(), Path, {"a": lambda: 0}, b"x"],
    ids=["function", "object", "class", "function within", "bytes"],
)
def test_objects_and_functions_are_not_sent(value: Any) -> None:
    with pytest.raises(TypeError, match="JSON and tensors"):
        pack(value, Any)


@pytest.mark.parametrize(
    ("value", "kind", "what"),
    [
        (["a"], str, "not a valid str: input should be a valid string"),
        ({"texts": [1]}, Whole, "not a valid Whole"),
        ({"part": None, "code": "x"}, Whole, "code: unexpected keyword argument"),
        ({"part": {"weights": ["w"], "by_name": {}}}, Whole, "part.weights.0: input should be an instance of Tensor"),
        ({"find": {"percnt": 1}}, Settings, "find.percnt: extra inputs are not permitted"),
        ({"a": torch.ones(2)}, dict[str, str], "a: input should be a valid string"),
    ],
)
def test_what_is_of_another_type_is_refused(value: Any, kind: Any, what: str) -> None:
    with pytest.raises(SafetyNeuronsError, match=f"What process 3 sent is .*{what}.* same versions"):
        unpack(pack(value, Any), kind, sender=3)


class Marks:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_damaged_message_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    hostile = pickle.dumps(Marks(tmp_path / "ran"))
    deep = b"[" * 100_000
    whole = pack(Whole(Part((torch.ones(3),), {}), ("text",)), Whole)
    damaged = [hostile, b"", b"\xff" * 64, whole + b"x", whole[8:]]
    damaged += [len(text).to_bytes(8) + text + safetensors.torch.save({}) for text in (hostile, deep, b"[]", b"{}")]
    damaged += [whole[:length] for length in range(len(whole))]
    for message in damaged:
        with pytest.raises(SafetyNeuronsError, match="What process 1 sent"):
            unpack(message, Whole, sender=1)
    assert not (tmp_path / "ran").exists()


def test_a_flipped_bit_never_gives_another_error() -> None:
    whole = bytearray(pack(Whole(Part((torch.ones(3),), {}), ("text",)), Whole))
    for place in range(len(whole) * 8):
        whole[place // 8] ^= 1 << place % 8
        try:
            found = unpack(bytes(whole), Whole, sender=1)
        except SafetyNeuronsError:
            found = None
        assert found is None or isinstance(found, Whole)
        whole[place // 8] ^= 1 << place % 8


SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, TESTS)
import torch
from torch import distributed
from safety_neurons.core import distributed as ours
from safety_neurons.core.errors import SafetyNeuronsError

distributed.init_process_group("gloo")
rank = distributed.get_rank()

def said(call):
    try:
        return call()
    except SafetyNeuronsError as error:
        return str(error)

results = [
    ours.all_gather("x" * rank, str),
    ours.all_gather({1: "é\\ud800" * (1 + 5000 * rank)}, dict[int, str])[1][1][:2],
    ours.broadcast([rank, 0.1], list[float]),
    # Process 1 sends something else.
    said(lambda: ours.all_gather("text", str) if rank == 0 else ours.all_gather([1], list[int])),
    # Process 1 expects something else.
    said(lambda: ours.broadcast([1], list[int] if rank == 0 else str)),
]
# Memory is full in process 1.
whole = ours._space
def full(size):
    if rank == 1 and size > 10**6:
        size = 2**62
    return whole(size)
ours._space = full
results += [
    said(lambda: ours.all_gather("x" * 2 * 10**6, str)),
    said(lambda: ours.broadcast("x" * 2 * 10**6, str)),
    # All goes on afterwards.
    ours.all_gather(rank, int),
]
Path(OUT, f"{rank}.json").write_text(json.dumps(results))
distributed.destroy_process_group()
"""


def test_what_one_process_cannot_read_fails_in_all(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("TESTS", repr(str(TESTS))).replace("OUT", repr(str(tmp_path))))
    ran = run_together(str(script))
    assert ran.codes == [0, 0], ran.output
    for rank in range(2):
        gathered, long, sent_by_0, not_text, not_list, *full, after = json.loads(
            (tmp_path / f"{rank}.json").read_text()
        )
        assert gathered == ["", "x"]
        assert long == "é\ud800"
        assert sent_by_0 == [0, 0.1]
        assert "process" in not_text
        assert (
            "What process 1 sent is not a valid str" in not_text
            or "What process 0 sent is not a valid list" in not_text
        )
        assert "What process 0 sent is not a valid str" in not_list
        assert ("Process 1 failed: " in not_list) == (rank == 0)
        for text in full:
            assert "no memory for a message of 4,611,686,018,427,387,904 bytes" in text
            assert ("Process 1 failed: " in text) == (rank == 0)
        assert after == [0, 1]


@pytest.mark.parametrize("call", ["broadcast_object_list([1], src=0)", "all_gather_object([0, 0], 1)"])
def test_the_processes_of_tests_refuse_pickles(tmp_path: Path, call: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"from torch import distributed\ndistributed.init_process_group('gloo')\ndistributed.{call}\n")
    ran = run_together(str(script))
    assert 0 not in ran.codes
    assert "AssertionError: a pickle" in ran.output
