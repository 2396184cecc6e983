"""A training that is killed goes on to the same bytes; validation chooses the deltas; nothing is a pickle."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from builders.quick import tune
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.temporary import process_namespace
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import complete
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.tuning.config import Validation
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.delta import NeuronDelta

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
    assert found.validations == expected.validations


def measured(model: ChatModel, calls: list[int]) -> Callable[[str], Validation]:
    """Rates that follow from the weights that the model computes with now, and random numbers."""

    def validate(_digest: str) -> Validation:
        calls.append(1)
        with torch.inference_mode():
            logits = model.model(torch.tensor([[9, 8, 7]])).logits
        return Validation(float(logits.float().sigmoid().mean()), float(torch.rand(())) / 10)

    return validate


@pytest.mark.parametrize("at", range(1, STEPS + 1))
def test_killed_at_any_step_it_goes_on_to_the_same_bytes(
    model: ChatModel, neuron_set: Callable[..., NeuronSet], corpus: Corpus, tmp_path: Path, at: int
) -> None:
    neurons, file = neuron_set(model), tmp_path / "checkpoint.safetensors"
    options = OPTIONS | {"validate_every": 2, "accumulate": 2}
    expected = tune(model, neurons, corpus, **options, validate=measured(model, []))
    again = options | {"checkpoint": file, "checkpoint_every": 3}
    with pytest.raises(Killed):
        tune(model, neurons, corpus, **again, validate=measured(model, []), advance=killer(at))
    assert file.exists() == (at > 3)
    done: list[int] = []
    calls: list[int] = []
    torch.rand(at)
    found = tune(model, neurons, corpus, **again, validate=measured(model, calls), advance=done.append)
    assert_same(found, expected)
    kept = (at - 1) // 3 * 3
    assert done == [kept, *[1] * (STEPS - kept)]
    assert len(calls) == 5 - kept // 2
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
        tune(model, neuron_set(model), corpus, **options, advance=killer(6))
    assert list(tmp_path.iterdir()) == [file]
    with safe_open(file, framework="pt") as opened:
        assert {name.split(".")[0] for name in opened.keys()} == {"delta", "optimizer", "random"}  # noqa: SIM118
    # What a process left that was killed while it wrote the next one.
    (tmp_path / f".{file.name}.99999999.{process_namespace()}.01234567.partial.safetensors").write_bytes(b"half")
    assert_same(tune(model, neuron_set(model), corpus, **options), expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changed", ["seed", "corpus", "neurons", "model", "validate"])
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
    elif changed == "model":
        model = replace(model, identity="another")
    else:
        given["validate"] = lambda _: Validation(0.0, 0.0)
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


RATES = [(0.5, 0.5), (0.4, 0.4), (0.6, 0.2), (0.5, 0.4), (0.3, 0.6), (0.0, 0.0)]


def test_the_best_deltas_are_kept_and_the_later_of_equal_ones(
    model: ChatModel, neuron_set: Callable[..., NeuronSet], corpus: Corpus
) -> None:
    """The second and the third are the best of the first five, and then there is no patience left."""
    neurons = neuron_set(model)
    seen: list[str] = []
    rates = iter(RATES)
    before = complete(model, ["ab"], 8)[0].text

    def validate(_digest: str) -> Validation:
        assert not model.model.training
        assert not torch.is_grad_enabled()
        seen.append(complete(model, ["ab"], 8)[0].text)
        return Validation(*next(rates))

    options = OPTIONS | {"learning_rate": 0.05, "epochs": 8, "schedule": "constant", "validate": validate}
    delta = tune(model, neurons, corpus, **options, validate_every=2, patience=3)
    assert [(found.attack_success, found.over_refusal) for found in delta.validations] == RATES[:5]
    assert [found.step for found in delta.validations] == [2, 4, 6, 8, 10]
    assert len(delta.steps) == 10
    with delta.apply(model):
        assert complete(model, ["ab"], 8)[0].text == seen[2]
    assert len({before, *seen}) > 3, "the test would not see which deltas were kept"


def test_last_step_is_validated_and_patience_may_be_endless(
    model: ChatModel, neuron_set: Callable[..., NeuronSet], corpus: Corpus
) -> None:
    rates = iter([Validation(0.1, 0.1), *[Validation(0.9, 0.9)] * 9])
    delta = tune(model, neuron_set(model), corpus, **OPTIONS, validate=lambda _: next(rates), validate_every=4)
    assert [found.step for found in delta.validations] == [4, 8, 10]
    assert len(delta.steps) == STEPS
    plain = tune(model, neuron_set(model), corpus, **OPTIONS)
    assert delta.steps == plain.steps
    assert not all(torch.equal(delta.tensors[name], value) for name, value in plain.tensors.items())


def test_model_is_as_before_when_validation_fails(
    model: ChatModel, neuron_set: Callable[..., NeuronSet], corpus: Corpus
) -> None:
    def validate(_digest: str) -> Validation:
        raise SafetyNeuronsError("The judge is gone.")

    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    with pytest.raises(SafetyNeuronsError, match="judge is gone"):
        tune(model, neuron_set(model), corpus, **OPTIONS, validate=validate)
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in model.model.modules())
