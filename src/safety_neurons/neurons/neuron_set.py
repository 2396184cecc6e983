"""Safety neurons, and the directions of their activations on harmful and benign prompts."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.records import Record
from safety_neurons.core.tensors import StoredTensors, write_tensors
from safety_neurons.models.chat import ChatModel

# What can be done about a file that cannot be used, where nothing is known of a run.
AGAIN = "Find the neurons again (sn.find), and save them with NeuronSet.save."
# More than any MLP has, and few enough to have a mask of all neurons in memory.
MOST_NEURONS = 1 << 27


@dataclass(frozen=True)
class Directions:
    """Mean activations at the last prompt positions: float32 [positions, neurons] per hook point, the last one last."""

    harmful: tuple[Tensor, ...]
    benign: tuple[Tensor, ...]

    @property
    def positions(self) -> int:
        """Number of positions."""
        return self.harmful[0].shape[0]

    def named(self) -> dict[str, Tensor]:
        """The tensors of a file: `harmful.N` and `benign.N` for hook point N."""
        return numbered("harmful", self.harmful) | numbered("benign", self.benign)

    @classmethod
    def of(cls, stored: StoredTensors, widths: Sequence[int]) -> Self:
        """Read what `named` gives for hook points of these widths.

        Raises:
            SafetyNeuronsError: a tensor is missing or wrong.
        """
        positions = len(stored.get("harmful.0", torch.float32, (None, widths[0])))
        if not positions:
            raise stored.problem("the directions have no positions")
        sides = (
            tuple(
                stored.get(f"{side}.{point}", torch.float32, (positions, width)) for point, width in enumerate(widths)
            )
            for side in ("harmful", "benign")
        )
        return cls(*sides)


@dataclass(frozen=True)
class Provenance:
    """Where a neuron set comes from. `percent` of the neurons was the budget of each ranking.

    `parameters_per_neuron` has one number per hook point; `coverage` describes what part of the model was searched;
    `tokens` are the counted tokens. For scores that test it, `significant` is the number of neurons per hook point that
    differ between the prompt sets at a false discovery rate of 5%; otherwise None.
    """

    model: str
    identity: str
    score: str
    percent: Annotated[float, Field(ge=0, le=100)]
    scope: str
    seed: int
    parameters_per_neuron: tuple[Annotated[int, Field(ge=0)], ...]
    parameters_total: Annotated[int, Field(gt=0)]
    coverage: str = ""
    tokens: str = ""
    selection: str = "difference"
    significant: tuple[Annotated[int, Field(ge=0)], ...] | None = None


class NeuronRecord(Record):
    """What a file says of a neuron set besides the indices."""

    widths: tuple[Annotated[int, Field(gt=0, le=MOST_NEURONS)], ...] = Field(min_length=1)
    layers: tuple[Annotated[int, Field(ge=0)], ...]
    provenance: Provenance

    @model_validator(mode="after")
    def _check_hook_points(self) -> Self:
        """One entry for each hook point everywhere, in the order of the layers."""
        origin, points = self.provenance, len(self.widths)
        significant = (0,) * points if origin.significant is None else origin.significant
        if {len(self.layers), len(origin.parameters_per_neuron), len(significant)} != {points}:
            raise ValueError("widths, layers and counts are of different numbers of MLPs")
        if list(self.layers) != sorted(self.layers):
            raise ValueError("the layers are not in order")
        if any(count > width for count, width in zip(significant, self.widths, strict=True)):
            raise ValueError("more neurons are significant than there are")
        if max(origin.parameters_per_neuron) > origin.parameters_total:
            raise ValueError("a neuron has more parameters than the model")
        return self


class DirectionsRecord(Record):
    """The neuron set that a file of directions belongs to: its model, and the digest of its file."""

    model: str
    identity: str
    neurons: str


class LayerCount(NamedTuple):
    """Number of neurons of one layer: all, rejection and conformity."""

    layer: int
    width: int
    rejection: int
    conformity: int


@dataclass(frozen=True)
class NeuronSet:
    """Safety neurons: the sorted indices (int64) of the rejection and the conformity neurons per hook point.

    A hook point is one MLP; `layers` and `widths` hold its layer (a mixture of experts may have two per layer) and its
    number of neurons.
    """

    rejection: tuple[Tensor, ...]
    conformity: tuple[Tensor, ...]
    widths: tuple[int, ...]
    layers: tuple[int, ...]
    provenance: Provenance
    directions: Directions | None = None

    def __len__(self) -> int:
        return sum(map(len, self.both))

    @property
    def both(self) -> tuple[Tensor, ...]:
        """Sorted indices of rejection and conformity neurons together, per hook point."""
        return tuple(torch.cat(pair).unique() for pair in zip(self.rejection, self.conformity, strict=True))

    @property
    def share_of_neurons(self) -> float:
        """The share of the model's neurons that are in the set."""
        return len(self) / sum(self.widths)

    @property
    def parameters(self) -> int:
        """Number of weights of these neurons: their write vectors and their rows of the input projections."""
        sizes = zip(self.both, self.provenance.parameters_per_neuron, strict=True)
        return sum(len(indices) * parameters for indices, parameters in sizes)

    @property
    def share_of_parameters(self) -> float:
        """The share of the model's weights that belong to these neurons."""
        return self.parameters / self.provenance.parameters_total

    def per_layer(self) -> list[LayerCount]:
        """The numbers of neurons per layer."""
        counts: dict[int, LayerCount] = {}
        found = (map(len, side) for side in (self.rejection, self.conformity))
        for layer, *sizes in zip(self.layers, self.widths, *found, strict=True):
            before = counts.get(layer, LayerCount(layer, 0, 0, 0))
            counts[layer] = LayerCount(layer, *map(operator.add, before[1:], sizes))
        return list(counts.values())

    def indices(self) -> list[dict[str, Any]]:
        """The neurons of each hook point, for JSON."""
        points = zip(self.layers, self.widths, self.rejection, self.conformity, strict=True)
        return [
            {
                "layer": layer,
                "hook_point": point,
                "width": width,
                "rejection": rejection.tolist(),
                "conformity": conformity.tolist(),
            }
            for point, (layer, width, rejection, conformity) in enumerate(points)
        ]

    def __str__(self) -> str:
        rejection, conformity = (sum(map(len, side)) for side in (self.rejection, self.conformity))
        partial = f"; {self.provenance.coverage}" if "PARTIAL" in self.provenance.coverage else ""
        return (
            f"{len(self):,} neurons ({self.share_of_neurons:.2%} of neurons, {self.share_of_parameters:.2%} of "
            f"parameters): {rejection:,} rejection, {conformity:,} conformity, found by {self.provenance.score}"
            f"{partial}"
        )

    def random_like(self, seed: int) -> "NeuronSet":
        """A control: as many random neurons per hook point, none of which is in this set."""
        generator = torch.Generator().manual_seed(seed)
        rejection, conformity = [], []
        for found, own, other, width in zip(self.both, self.rejection, self.conformity, self.widths, strict=True):
            free = torch.ones(width, dtype=torch.bool)
            free[found] = False
            others, count = free.nonzero().flatten(), len(own) + len(other)
            if len(others) < count:
                raise SafetyNeuronsError(
                    f"{len(found)} of {width} neurons of an MLP are in the set: too few are left for as many random "
                    "ones. Lower percent."
                )
            drawn = others[torch.randperm(len(others), generator=generator)[:count]]
            rejection.append(drawn[: len(own)].sort().values)
            conformity.append(drawn[len(own) :].sort().values)
        provenance = replace(self.provenance, score="random", seed=seed)
        return replace(self, rejection=tuple(rejection), conformity=tuple(conformity), provenance=provenance)

    def check_fits(self, model: ChatModel) -> None:
        """Raise SafetyNeuronsError if the neurons belong to another model.

        Only the shape is checked of a model whose identity is unknown (empty).
        """
        origin = self.provenance
        shape = tuple((point.layer, point.width) for point in model.hook_points)
        if tuple(zip(self.layers, self.widths, strict=True)) != shape:
            raise SafetyNeuronsError(
                f"The neurons were found in {origin.model}, whose layers have other widths than those of {model.name}. "
                "Find them on this model."
            )
        if model.identity and origin.identity != model.identity:
            raise SafetyNeuronsError(
                f"The neurons were found in {origin.model} ({origin.identity[:12]}), not in {model.name} "
                f"({model.identity[:12]}), whose weights differ. Load that model, or find the neurons of this one."
            )

    @property
    def record(self) -> NeuronRecord:
        """What a file says of the set besides the indices."""
        return NeuronRecord(widths=self.widths, layers=self.layers, provenance=self.provenance)

    def named(self) -> dict[str, Tensor]:
        """The tensors of a file: `rejection.N` and `conformity.N` for hook point N."""
        return numbered("rejection", self.rejection) | numbered("conformity", self.conformity)

    @classmethod
    def of(cls, stored: StoredTensors, about: NeuronRecord, directions: Directions | None = None) -> Self:
        """Read what `named` and `record` give.

        Raises:
            SafetyNeuronsError: a tensor is missing or wrong.
        """
        rejection, conformity = (
            tuple(stored.indices(f"{side}.{point}", width) for point, width in enumerate(about.widths))
            for side in ("rejection", "conformity")
        )
        return cls(rejection, conformity, about.widths, about.layers, about.provenance, directions)

    def save(self, path: Path, directions: Path | None = None) -> None:
        """Write the indices and their provenance as safetensors, and optionally the directions to another file."""
        digest = write_tensors(path, "neuron set", self.named(), self.record)
        if directions is not None:
            assert self.directions is not None
            origin = self.provenance
            belongs_to = DirectionsRecord(model=origin.model, identity=origin.identity, neurons=digest)
            write_tensors(directions, "directions file", self.directions.named(), belongs_to)

    @classmethod
    def load(cls, path: str | Path, directions: str | Path | None = None, *, advice: str = AGAIN) -> Self:
        """Load a neuron set, optionally with the directions in another file.

        Args:
            advice: what can be done about a file that cannot be used; ends the error message.

        Raises:
            SafetyNeuronsError: a file is missing or damaged, or the directions belong to other neurons.
        """
        stored = StoredTensors.read(Path(path), "neuron set", advice)
        found = cls.of(stored, stored.about(NeuronRecord))
        stored.check_names(found.named())
        if directions is None:
            return found
        means = StoredTensors.read(Path(directions), "directions file", advice)
        belongs_to, origin = means.about(DirectionsRecord), found.provenance
        if belongs_to.neurons != stored.digest:
            raise SafetyNeuronsError(
                f"{directions} belongs to other neurons, of {belongs_to.model} ({belongs_to.identity[:12]}), than "
                f"{path}, of {origin.model} ({origin.identity[:12]}). {advice}"
            )
        complete = replace(found, directions=Directions.of(means, found.widths))
        assert complete.directions is not None
        means.check_names(complete.directions.named())
        return complete


def numbered(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """The tensors under the names `name.0`, `name.1` ..."""
    return {f"{name}.{number}": value for number, value in enumerate(tensors)}


def sorted_indices(masks: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The indices at which each mask is true."""
    return tuple(mask.nonzero().flatten() for mask in masks)
