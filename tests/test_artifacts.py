"""Every file of tensors: what is damaged, forged or of another model is refused, by name, at once, with what to do."""

import dataclasses
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from builders import tensor_damage as damage
from builders.models import tiny_model
from safety_neurons.calibration.config import CalibrationConfig
from safety_neurons.calibration.detector import Detector
from safety_neurons.calibration.guard import Guard
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.temporary import remove
from safety_neurons.experiments import scored
from safety_neurons.experiments.cost import Cost
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons import scores
from safety_neurons.neurons.find import ScoredNeurons
from safety_neurons.neurons.neuron_set import Directions, NeuronSet, Provenance
from safety_neurons.settings import Settings
from safety_neurons.tuning.checkpoint import (
    Checkpoint,
    CheckpointPlan,
    ScheduleProgress,
    TrainerProgress,
    TrainingState,
    named,
    passes_of,
)
from safety_neurons.tuning.delta import NeuronDelta
from safety_neurons.tuning.lora import Adapter
from safety_neurons.tuning.neuron_deltas import empty_delta
from safety_neurons.tuning.trainer import random_states

# Seconds until a file is refused. Opening one takes milliseconds; other work may share the machine.
AT_ONCE = 10


class Artifact(NamedTuple):
    """How to write a file, how to read it, and what the error has to say besides the file's name.

    What only saves time is computed again if it is missing, and reads as None.
    """

    write: Callable[[Path], object]
    read: Callable[[Path], Any]
    advice: str
    computed_if_missing: bool = False


def some(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def neurons_of(model: ChatModel) -> NeuronSet:
    points = model.hook_points
    widths = tuple(point.width for point in points)
    rejection = tuple(torch.tensor([1, 5, 9]) for _ in points)
    conformity = tuple(torch.tensor([2, 5]) for _ in points)
    counts = (1,) * len(points)
    provenance = Provenance(
        model.name, model.identity, "welch", 1.0, "layer", 0, counts, model.parameters, significant=counts
    )
    means = [tuple(some(3, width) for width in widths) for _ in range(2)]
    layers = tuple(point.layer for point in points)
    return NeuronSet(rejection, conformity, widths, layers, provenance, Directions(*means))


@pytest.fixture(scope="module")
def base() -> ChatModel:
    return tiny_model()


@pytest.fixture(scope="module")
def artifacts(base: ChatModel) -> dict[str, Artifact]:
    neurons = neurons_of(base)
    tensors = {name: some(*zero.shape) for name, zero in empty_delta(base, neurons).items()}
    # Four neurons in each of the three layers, of which the first decides.
    detector = Detector(some(4), 0.5, some(20).sort().values, 0.9, 0.01)
    calibration = CalibrationConfig(prompt_positions=3, layers=(0, 2))
    guard = Guard(neurons, detector, 0, 0.1, 2.0, calibration, "run options")
    parameters = {"site0_write": some(4, 8), "site0_read0_bias": some(4)}
    random_tensors, states = random_states()
    stored = named("delta", parameters) | passes_of([parameters]) | named("random", random_tensors)
    for name, value in parameters.items():
        stored |= named(f"optimizer.{name}", {"step": torch.tensor(3.0), "exp_avg": value, "exp_avg_sq": value.abs()})
    progress = TrainerProgress(0.5, 3, 10, 1, 500, 500, 4, 1, 0, 0.0, [{"loss": 1.5, "step": 1}])
    state = TrainingState(progress, ScheduleProgress(3, 4, [0.1, 0.1]), states)
    plan = CheckpointPlan(parameters, steps=10, steps_per_epoch=3, keep_passes=True)
    adapter = Adapter(base.name, base.identity, 2, 4.0, {"x.lora_A.weight": some(2, 8), "x.lora_B.weight": some(6, 2)})
    score = scores.get("write-contrast")
    sides = [[some(width) for width in neurons.widths] for _ in range(2)]
    assert neurons.directions is not None
    whole = ScoredNeurons(base, score, score.tokens, 0, sides[0], sides[1], neurons.directions, (1, 2, 3))
    resampled = scored.ResampledScore(whole, (), Cost(1.0, 5))
    training = scored.TrainingPrompts(("a",), ("b",), Settings(), 0)
    return {
        "neurons": Artifact(neurons.save, NeuronSet.load, "sn.find"),
        "directions": Artifact(
            lambda path: neurons.save(path.with_name("neurons"), path),
            lambda path: NeuronSet.load(path.with_name("neurons"), path),
            "sn.find",
        ),
        "delta": Artifact(NeuronDelta(neurons, tensors).save, NeuronDelta.load, "sn.tune"),
        "guard": Artifact(guard.save, Guard.load, "sn.fit_guard"),
        "checkpoint": Artifact(
            Checkpoint("abc", stored, state).save, lambda path: Checkpoint.load(path, "abc", plan), "Delete it"
        ),
        "adapter": Artifact(
            lambda path: adapter.save(path.parent, base),
            lambda path: Adapter.load(path.parent),
            "Delete the folder",
        ),
        "scores": Artifact(
            lambda path: scored._save(path, "key", resampled),
            lambda path: scored._load(path, "key", base, score, training),
            "Delete it",
            computed_if_missing=True,
        ),
    }


KINDS = ["neurons", "directions", "delta", "guard", "checkpoint", "adapter", "scores"]


@pytest.fixture(params=KINDS)
def artifact(request: pytest.FixtureRequest, artifacts: dict[str, Artifact]) -> Artifact:
    return artifacts[request.param]


@pytest.fixture
def path(artifact: Artifact, tmp_path: Path) -> Path:
    """A whole file."""
    path = tmp_path / "adapter_model.safetensors"
    artifact.write(path)
    assert artifact.read(path) is not None
    return path


def refused(artifact: Artifact, path: Path, what: str) -> None:
    started = time.monotonic()
    with pytest.raises(SafetyNeuronsError) as caught:
        pytest.fail(f"{what}: {artifact.read(path)!r} was read")
    assert str(path) in str(caught.value), what
    assert artifact.advice in str(caught.value), what
    assert time.monotonic() - started < AT_ONCE, what


def test_whole_number_of_a_checkpoint_stays_one(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    """The steps of a resumed training are written to the results like those of one that ran through."""
    artifacts["checkpoint"].write(tmp_path / "checkpoint")
    (logged,) = artifacts["checkpoint"].read(tmp_path / "checkpoint").state.trainer.log_history
    assert json.dumps(logged) == '{"loss": 1.5, "step": 1}'


def test_damaged_file_is_refused_at_once(artifact: Artifact, path: Path) -> None:
    for what, harm in (damage.RAW | damage.METADATA).items():
        harm(path)
        if artifact.computed_if_missing and not os.path.lexists(path):
            assert artifact.read(path) is None
        else:
            refused(artifact, path, what)
        remove(path)
        artifact.write(path)


def test_one_flipped_bit_is_enough_to_refuse_a_file(artifact: Artifact, path: Path) -> None:
    """At random places, of header, metadata and tensors alike."""
    whole, draw = path.read_bytes(), random.Random(1)
    for _ in range(50):
        place, bit = draw.randrange(len(whole)), draw.randrange(8)
        content = bytearray(whole)
        content[place] ^= 1 << bit
        path.write_bytes(content)
        refused(artifact, path, f"bit {bit} of byte {place} of {len(whole)}")
    path.write_bytes(whole)
    artifact.read(path)


def test_forged_tensors_are_refused_although_their_digest_is_right(artifact: Artifact, path: Path) -> None:
    tensors, _ = damage.content(path)
    whole = path.read_bytes()
    forged: list[tuple[str, dict[str, Tensor]]] = [("an unknown tensor", tensors | {"unknown": torch.zeros(2)})]
    for name, value in tensors.items():
        forged.append((f"without {name}", {key: other for key, other in tensors.items() if key != name}))
        forged += [(what, tensors | {name: other}) for what, other in damage.other_tensors(name, value)]
    for what, changed in forged:
        path.write_bytes(whole)
        damage.forge(path, changed)
        if what.startswith("without") and ("delta." in what or "lora" in what or "pass" in what):
            # Which a model needs is known when they are used with it.
            continue
        if what == "without random.cuda":
            continue
        refused(artifact, path, what)


def test_forged_description_is_refused_or_used_and_never_met_by_surprise(artifact: Artifact, path: Path) -> None:
    """Some other values are possible ones; whatever is not has to be told."""
    about = json.loads(damage.content(path)[1])["about"]
    whole, told = path.read_bytes(), list[str]()
    for changed in damage.other_values(about):
        path.write_bytes(whole)
        try:
            damage.forge(path, about=changed)
        except ValueError:
            # NaN is not JSON.
            continue
        try:
            artifact.read(path)
        except SafetyNeuronsError as error:
            told.append(str(error))
    assert len(told) > 30
    assert all(str(path) in message for message in told)


def test_forged_numbers_out_of_range_are_refused(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    cases: list[tuple[str, list[str], Any]] = [
        ("neurons", ["widths"], [0, 0, 0]),
        ("neurons", ["widths"], [1 << 60, 48, 48]),
        ("neurons", ["layers"], [2, 1, 0]),
        ("neurons", ["layers"], [0, 1]),
        ("neurons", ["provenance", "percent"], 101),
        ("neurons", ["provenance", "significant"], [1, 1, 10_000]),
        ("neurons", ["provenance", "parameters_per_neuron"], [1, 1, 1 << 40]),
        ("guard", ["layer"], 3),
        ("guard", ["layer"], 1),
        ("guard", ["false_positive_rate"], 0.01),
        ("guard", ["false_positive_rate"], 1),
        ("guard", ["alpha"], -1),
        ("guard", ["auroc"], 1.1),
        ("guard", ["penalty"], 0),
        ("guard", ["calibration", "prompt_positions"], "template"),
        ("guard", ["calibration", "prompt_positions"], 4),
        ("guard", ["calibration", "layers"], [3, 4]),
        ("guard", ["calibration", "generated_tokens"], 10**30),
        ("adapter", ["rank"], 0),
        ("adapter", ["rank"], 3),
        ("adapter", ["alpha"], 0),
        ("checkpoint", ["state", "random", "python_words"], [1]),
        ("checkpoint", ["state", "trainer", "global_step"], -1),
        ("checkpoint", ["state", "trainer", "global_step"], 0),
        ("checkpoint", ["state", "trainer", "global_step"], 2),
        ("checkpoint", ["state", "trainer", "global_step"], 6),
        ("checkpoint", ["state", "trainer", "global_step"], 11),
        ("checkpoint", ["state", "trainer", "max_steps"], 3),
        ("scores", ["significant"], [1]),
    ]
    path = tmp_path / "adapter_model.safetensors"
    for kind, place, value in cases:
        artifacts[kind].write(path)
        about = json.loads(damage.content(path)[1])["about"]
        part = about
        for name in place[:-1]:
            part = part[name]
        part[place[-1]] = value
        damage.forge(path, about=about)
        refused(artifacts[kind], path, f"{kind} with {'.'.join(place)} {value!r}")


def test_delta_with_nan_is_never_applied(base: ChatModel) -> None:
    neurons = neurons_of(base)
    tensors = {name: torch.zeros(zero.shape) for name, zero in empty_delta(base, neurons).items()}
    tensors["site1_write"][0, 0] = float("nan")
    with pytest.raises(SafetyNeuronsError, match="site1_write of this delta holds NaN"):
        NeuronDelta(neurons, tensors).apply(base)
    tensors["site1_write"] = torch.zeros(1, 1)
    with pytest.raises(SafetyNeuronsError, match="site1_write of this delta does not fit"):
        NeuronDelta(neurons, tensors).apply(base)


def test_files_of_another_model_of_the_same_shape_are_refused_with_both(base: ChatModel, tmp_path: Path) -> None:
    other = dataclasses.replace(base, name="other-model", identity="123456789abcdef")
    neurons = neurons_of(other)
    tensors = {name: torch.zeros(zero.shape) for name, zero in empty_delta(base, neurons).items()}
    NeuronDelta(neurons, tensors).save(tmp_path / "delta")
    with pytest.raises(SafetyNeuronsError, match=rf"other-model \(123456789abc\), not for {base.name}"):
        NeuronDelta.load(tmp_path / "delta").apply(base)
    with pytest.raises(SafetyNeuronsError, match=rf"other-model \(123456789abc\), not in {base.name}"):
        neurons.check_fits(base)
