"""A training that is killed goes on to the same bytes; the deltas of every pass are there; nothing is a pickle."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from builders.quick import tune
from builders.tensor_damage import content, forge
from safety_neurons.core import tensors as tensors_module
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.temporary import process_namespace
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.tuning import checkpoint as checkpoint_module
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.delta import NeuronDelta
from safety_neurons.tuning.trainer import DeltaTrainer

OPTIONS: dict[str, Any] = {"batch_size": 4, "epochs": 2, "learning_rate": 0.01, "kl": 0.2, "seed": 3}
STEPS = 10


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


def killer(at: int) -> Callable[[int], None]:
    """Dies after optimizer step `at`, before its checkpoint is written."""
    done = itertools.count(1)

    def advance(steps: int) -> None:
        for _ in range(steps):
            if next(done) == at:
                raise Killed

    return advance


def assert_same(found: NeuronDelta, expected: NeuronDelta) -> None:
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in expected.tensors.items())
    assert found.steps == expected.steps
    assert len(found.earlier) == len(expected.earlier)
    for mine, theirs in zip(found.earlier, expected.earlier, strict=True):
        assert all(torch.equal(mine[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("at", range(1, STEPS + 1))
def test_killed_at_any_step_it_goes_on_to_the_same_bytes(
    model: ChatModel, neuron_set: Callable[..., NeuronSet], corpus: Corpus, tmp_path: Path, at: int
) -> None:
    neurons, file = neuron_set(model), tmp_path / "checkpoint.safetensors"
    options = OPTIONS | {"accumulate": 2}
    expected = tune(model, neurons, corpus, **options)
    again = options | {"checkpoint": file, "checkpoint_every": 3}
    with pytest.raises(Killed):
        tune(model, neurons, corpus, **again, advance=killer(at))
    assert file.exists() == (at > 3)
    done: list[int] = []
    torch.rand(at)
    found = tune(model, neurons, corpus, **again, advance=done.append)
    assert_same(found, expected)
    kept = (at - 1) // 3 * 3
    assert done == [kept, *[1] * (STEPS - kept)]
    assert list(tmp_path.iterdir()) == []


def test_killed_twice_it_goes_on_from_the_later_checkpoint(
    model: ChatModel, neuron_set: Callable[..., NeuronSet], corpus: Corpus, tmp_path: Path
) -> None:
    neurons = neuron_set(model)
    expected = tune(model, neurons, corpus, **OPTIONS)
    again = OPTIONS | {"checkpoint": tmp_path / "folder" / "checkpoint.safetensors", "checkpoint_every": 1}
    for at in (3, 7):
        with pytest.raises(Killed):
            tune(model, neurons, corpus, **again, advance=killer(at))
    assert_same(tune(model, neurons, corpus, **again), expected)


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_checkpoint_holds_no_pickle_and_is_one_whole_file(
    model: ChatModel,
    neuron_set: Callable[..., NeuronSet],
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    schedule: str,
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("a pickle")

    for name in ("save", "load"):
        monkeypatch.setattr(torch, name, refuse)
    file = tmp_path / "checkpoint.safetensors"
    options = OPTIONS | {"checkpoint": file, "checkpoint_every": 2, "schedule": schedule}
    expected = tune(model, neuron_set(model), corpus, **(OPTIONS | {"schedule": schedule}))
    with pytest.raises(Killed):
        tune(model, neuron_set(model), corpus, **options, advance=killer(8))
    assert list(tmp_path.iterdir()) == [file]
    with safe_open(file, framework="pt") as opened:
        assert {name.split(".")[0] for name in opened.keys()} == {"delta", "pass0", "optimizer", "random"}  # noqa: SIM118
    # What a process left that was killed while it wrote the next one.
    (tmp_path / f".{file.name}.99999999.{process_namespace()}.01234567.partial.safetensors").write_bytes(b"half")
    assert_same(tune(model, neuron_set(model), corpus, **options), expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changed", ["seed", "corpus", "neurons", "model"])
def test_checkpoint_of_another_training_is_not_taken(
    model: ChatModel, neuron_set: Callable[..., NeuronSet], corpus: Corpus, tmp_path: Path, changed: str
) -> None:
    file = tmp_path / "checkpoint.safetensors"
    options = OPTIONS | {"checkpoint": file, "checkpoint_every": 2}
    with pytest.raises(Killed):
        tune(model, neuron_set(model), corpus, **options, advance=killer(6))
    given: dict[str, Any] = dict(OPTIONS)
    neurons = neuron_set(model)
    if changed == "seed":
        given["seed"] = 4
    elif changed == "corpus":
        corpus = Corpus((replace(corpus.pairs[0], response="Other."), *corpus.pairs[1:]))
    elif changed == "neurons":
        neurons = neuron_set(model, count=10)
    else:
        model = replace(model, identity="another")
    done: list[int] = []
    with pytest.warns(UserWarning, match="another model, corpus, neurons or options"):
        found = tune(model, neurons, corpus, **given, checkpoint=file, checkpoint_every=2, advance=done.append)
    assert sum(done) == STEPS == len(done) - 1
    assert_same(found, tune(model, neurons, corpus, **given))


def test_broken_checkpoint_is_an_error_that_says_what_to_do(
    model: ChatModel, neuron_set: Callable[..., NeuronSet], corpus: Corpus, tmp_path: Path
) -> None:
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(b"nothing")
    with pytest.raises(SafetyNeuronsError, match=r"is damaged.*Delete it"):
        tune(model, neuron_set(model), corpus, checkpoint=file)
    tune(model, neuron_set(model), corpus).save(file)
    with pytest.raises(SafetyNeuronsError, match=r"is not a checkpoint.*Delete it"):
        tune(model, neuron_set(model), corpus, checkpoint=file)
    assert file.exists()


@pytest.mark.parametrize(
    ("progress", "problem"),
    [
        ({"global_step": STEPS}, "pass0.* is missing"),
        ({"global_step": 1, "max_steps": 1}, "step 1 of 1, and this training has 10"),
        ({"global_step": STEPS + 1}, "step 11 of 10"),
    ],
)
def test_checkpoint_that_says_it_is_of_another_step_is_an_error(
    model: ChatModel,
    neuron_set: Callable[..., NeuronSet],
    corpus: Corpus,
    tmp_path: Path,
    progress: dict[str, int],
    problem: str,
) -> None:
    file = tmp_path / "checkpoint.safetensors"
    options = OPTIONS | {"checkpoint": file, "checkpoint_every": 2}
    with pytest.raises(Killed):
        tune(model, neuron_set(model), corpus, **options, advance=killer(3))
    about = json.loads(content(file)[1])["about"]
    about["state"]["trainer"] |= progress
    forge(file, about=about)
    with pytest.raises(SafetyNeuronsError, match=rf"is damaged: .*{problem}.*Delete it"):
        tune(model, neuron_set(model), corpus, **options)


@pytest.mark.parametrize("keep_passes", [True, False])
def test_checkpoint_holds_the_passes_that_are_kept_and_is_read_however_large_it_is(
    model: ChatModel,
    neuron_set: Callable[..., NeuronSet],
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keep_passes: bool,
) -> None:
    neurons, file = neuron_set(model), tmp_path / "checkpoint.safetensors"
    options = OPTIONS | {"checkpoint": file, "checkpoint_every": 2, "keep_passes": keep_passes}
    expected = tune(model, neurons, corpus, **OPTIONS)
    with pytest.raises(Killed):
        tune(model, neurons, corpus, **options, advance=killer(7))
    with safe_open(file, framework="pt") as opened:
        parts = {name.split(".")[0] for name in opened.keys()}  # noqa: SIM118
    assert parts == {"delta", "optimizer", "random"} | ({"pass0"} if keep_passes else set())
    for module in (tensors_module, checkpoint_module):
        monkeypatch.setattr(module, "MOST_BYTES", 0)
    # The header, and the few numbers that do not grow with the neurons.
    header = int.from_bytes(file.read_bytes()[:8], "little")
    monkeypatch.setattr(checkpoint_module, "_MOST_HEADER_BYTES", header + 10_000)
    found = tune(model, neurons, corpus, **options)
    assert_same(found, expected if keep_passes else replace(expected, earlier=()))


def test_every_pass_is_what_a_training_is_after_it(
    model: ChatModel, neuron_set: Callable[..., NeuronSet], corpus: Corpus
) -> None:
    """With a constant rate, a shorter training is the start of a longer one."""
    options = OPTIONS | {"schedule": "constant", "warmup": 0.0}
    neurons = neuron_set(model)
    longer = tune(model, neurons, corpus, **(options | {"epochs": 3}))
    assert (longer.epoch, len(longer.earlier)) == (3, 2)
    for epoch in (1, 2):
        shorter, part = tune(model, neurons, corpus, **(options | {"epochs": epoch})), longer.after(epoch)
        assert all(torch.equal(part.tensors[name], value) for name, value in shorter.tensors.items())
        assert (part.epoch, part.digest, len(part.earlier)) == (epoch, shorter.digest, epoch - 1)
    assert longer.after(3) is longer
    for unknown in (0, 4):
        with pytest.raises(SafetyNeuronsError, match="holds the passes 1 to 3"):
            longer.after(unknown)


def test_a_kept_checkpoint_of_a_finished_training_gives_the_same_delta_without_training(
    model: ChatModel,
    neuron_set: Callable[..., NeuronSet],
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    neurons, file = neuron_set(model), tmp_path / "checkpoint.safetensors"
    options = OPTIONS | {"checkpoint": file, "keep_checkpoint": True}
    expected = tune(model, neurons, corpus, **options)
    assert file.exists()

    def train(*_args: object, **_options: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(DeltaTrainer, "train", train)
    done: list[int] = []
    assert_same(tune(model, neurons, corpus, **options, advance=done.append), expected)
    assert done == [STEPS]
    assert_same(tune(model, neurons, corpus, **(options | {"keep_checkpoint": False})), expected)
    assert not file.exists()
