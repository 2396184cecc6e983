"""Safety neurons, and the directions of their activations on harmful and benign prompts."""

import json
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import atomic_path, read_tensors
from safety_neurons.models.chat import ChatModel


@dataclass(frozen=True)
class Directions:
    """Mean activations at the last prompt positions: float32 [positions, neurons] per hook point, the last one last."""

    harmful: tuple[Tensor, ...]
    benign: tuple[Tensor, ...]

    @property
    def positions(self) -> int:
        """Number of positions."""
        return self.harmful[0].shape[0]

    def save(self, path: Path) -> None:
        """Write the means as safetensors."""
        tensors = {f"harmful.{number}": value.contiguous() for number, value in enumerate(self.harmful)}
        tensors |= {f"benign.{number}": value.contiguous() for number, value in enumerate(self.benign)}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load directions.

        Raises:
            SafetyNeuronsError: the file is missing or broken, or holds something else.
        """
        tensors, _ = read_tensors(path)
        names = [[f"{side}.{number}" for number in range(len(tensors) // 2)] for side in ("harmful", "benign")]
        if set(tensors) != {*names[0], *names[1]}:
            raise SafetyNeuronsError(f"{path} does not hold directions. Run `find` again.")
        return cls(*(tuple(tensors[name] for name in side) for side in names))


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
    percent: float
    scope: str
    seed: int
    parameters_per_neuron: tuple[int, ...]
    parameters_total: int
    coverage: str = ""
    tokens: str = ""
    selection: str = "difference"
    significant: tuple[int, ...] | None = None


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

    def metadata(self) -> dict[str, str]:
        """The metadata of the file: one entry, as safetensors writes several in any order."""
        return {
            "neurons": json.dumps({"widths": self.widths, "layers": self.layers, "provenance": asdict(self.provenance)})
        }

    def check_fits(self, model: ChatModel) -> None:
        """Raise SafetyNeuronsError if the neurons belong to a model of another shape."""
        shape = tuple((point.layer, point.width) for point in model.hook_points)
        if tuple(zip(self.layers, self.widths, strict=True)) != shape:
            raise SafetyNeuronsError(
                f"The neurons were found in {self.provenance.model}, whose layers have other widths than those of "
                f"{model.name}. Find them on this model."
            )

    def save(self, path: Path) -> None:
        """Write the indices and their provenance as safetensors, without the directions."""
        tensors = {f"rejection.{point}": value for point, value in enumerate(self.rejection)}
        tensors |= {f"conformity.{point}": value for point, value in enumerate(self.conformity)}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, self.metadata())

    @classmethod
    def load(cls, path: Path, directions: Path | None = None) -> Self:
        """Load a neuron set, optionally with the directions in another file.

        Raises:
            SafetyNeuronsError: a file is missing or broken.
        """
        tensors, metadata = read_tensors(path)
        try:
            described = json.loads(metadata["neurons"])
            widths, layers, origin = described["widths"], described["layers"], described["provenance"]
            for name in ("parameters_per_neuron", "significant"):
                if origin.get(name) is not None:
                    origin[name] = tuple(origin[name])
            provenance = Provenance(**origin)
            rejection, conformity = (
                tuple(tensors[f"{side}.{point}"] for point in range(len(widths)))
                for side in ("rejection", "conformity")
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise SafetyNeuronsError(f"{path} is not a neuron set: {error!r}. Run `find` again.") from error
        return cls(
            rejection,
            conformity,
            tuple(widths),
            tuple(layers),
            provenance,
            Directions.load(directions) if directions else None,
        )


def sorted_indices(masks: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The indices at which each mask is true."""
    return tuple(mask.nonzero().flatten() for mask in masks)
