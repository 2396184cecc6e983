"""The found neurons, and what their activations mean on harmful and benign prompts."""

import json
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
    """Mean activations at the prompt's last positions: per site float32 [positions, neurons], last position last."""

    harmful: tuple[Tensor, ...]
    benign: tuple[Tensor, ...]

    @property
    def positions(self) -> int:
        return self.harmful[0].shape[0]

    def save(self, path: Path) -> None:
        """Write the means as safetensors."""
        tensors = {f"harmful.{layer}": value.contiguous() for layer, value in enumerate(self.harmful)}
        tensors |= {f"benign.{layer}": value.contiguous() for layer, value in enumerate(self.benign)}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            SafetyNeuronsError: the file is missing or broken, or holds something else.
        """
        tensors, _ = read_tensors(path)
        layers = len(tensors) // 2
        if set(tensors) != {f"{side}.{layer}" for side in ("harmful", "benign") for layer in range(layers)}:
            raise SafetyNeuronsError(f"{path} holds no directions. Run `find` again.")
        return cls(
            tuple(tensors[f"harmful.{layer}"] for layer in range(layers)),
            tuple(tensors[f"benign.{layer}"] for layer in range(layers)),
        )


@dataclass(frozen=True)
class Provenance:
    """Where a neuron set comes from. `percent` of the neurons was the budget of each ranking.

    `parameters_per_neuron` has one number per site; `coverage` says what part of the model was searched. `tokens` are
    those whose activations counted. `significant` is, for scores that test it, how many neurons of each site differ
    between the two prompt sets at a false discovery rate of 5%; it is None for the others.
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
    """The neurons of one layer: all, and those found on either side."""

    layer: int
    width: int
    rejection: int
    conformity: int


@dataclass(frozen=True)
class NeuronSet:
    """Safety neurons: per site the sorted indices (int64) that carry rejection and conformity.

    A site is one MLP; `layers` says in which layer each stands (a mixture of experts may have two in one layer), and
    `widths` how many neurons it has.
    """

    rejection: tuple[Tensor, ...]
    conformity: tuple[Tensor, ...]
    widths: tuple[int, ...]
    layers: tuple[int, ...]
    provenance: Provenance
    directions: Directions | None = None

    def __len__(self) -> int:
        return sum(len(layer) for layer in self.both)

    @property
    def both(self) -> tuple[Tensor, ...]:
        """Rejection and conformity neurons together, sorted, per site."""
        return tuple(torch.cat(pair).unique() for pair in zip(self.rejection, self.conformity, strict=True))

    @property
    def share_of_neurons(self) -> float:
        return len(self) / sum(self.widths)

    @property
    def parameters(self) -> int:
        """Weights that belong to these neurons: their rows of the read matrices, their columns of the write matrix."""
        sizes = zip(self.both, self.provenance.parameters_per_neuron, strict=True)
        return sum(len(indices) * parameters for indices, parameters in sizes)

    @property
    def share_of_parameters(self) -> float:
        return self.parameters / self.provenance.parameters_total

    def per_layer(self) -> list[LayerCount]:
        """How many neurons each layer has and how many of them were found."""
        points = list(zip(self.layers, self.widths, self.rejection, self.conformity, strict=True))
        return [
            LayerCount(
                layer,
                sum(width for number, width, _, _ in points if number == layer),
                sum(len(rejection) for number, _, rejection, _ in points if number == layer),
                sum(len(conformity) for number, _, _, conformity in points if number == layer),
            )
            for layer in dict.fromkeys(self.layers)
        ]

    def indices(self) -> list[dict[str, Any]]:
        """The neurons of each site as numbers, for JSON."""
        points = zip(self.layers, self.widths, self.rejection, self.conformity, strict=True)
        return [
            {
                "layer": layer,
                "site": point,
                "width": width,
                "rejection": rejection.tolist(),
                "conformity": conformity.tolist(),
            }
            for point, (layer, width, rejection, conformity) in enumerate(points)
        ]

    def __str__(self) -> str:
        rejection, conformity = (sum(len(layer) for layer in side) for side in (self.rejection, self.conformity))
        partial = f"; {self.provenance.coverage}" if "PARTIAL" in self.provenance.coverage else ""
        return (
            f"{len(self):,} neurons ({self.share_of_neurons:.2%} of neurons, {self.share_of_parameters:.2%} of "
            f"parameters): {rejection:,} rejection, {conformity:,} conformity, found by {self.provenance.score}"
            f"{partial}"
        )

    def random_like(self, seed: int) -> "NeuronSet":
        """As many other neurons in each site, drawn at random: the control. None of the found ones is among them."""
        generator = torch.Generator().manual_seed(seed)
        rejection, conformity = [], []
        for found, mine, theirs, width in zip(self.both, self.rejection, self.conformity, self.widths, strict=True):
            free = torch.ones(width, dtype=torch.bool)
            free[found] = False
            others = free.nonzero().flatten()
            if len(others) < len(mine) + len(theirs):
                raise SafetyNeuronsError(
                    f"{len(found)} of {width} neurons of a layer were found: too few are left for as many random "
                    "ones. Lower find.percent."
                )
            drawn = others[torch.randperm(len(others), generator=generator)[: len(mine) + len(theirs)]]
            rejection.append(drawn[: len(mine)].sort().values)
            conformity.append(drawn[len(mine) :].sort().values)
        provenance = replace(self.provenance, score="random", seed=seed)
        return replace(self, rejection=tuple(rejection), conformity=tuple(conformity), provenance=provenance)

    def metadata(self) -> dict[str, str]:
        """What the file says besides its tensors; one entry, because safetensors writes several in any order."""
        return {
            "neurons": json.dumps({"widths": self.widths, "layers": self.layers, "provenance": asdict(self.provenance)})
        }

    def check_fits(self, model: ChatModel) -> None:
        """Raises SafetyNeuronsError where the neurons belong to a model of another shape."""
        shape = tuple((point.layer, point.width) for point in model.hook_points)
        if tuple(zip(self.layers, self.widths, strict=True)) != shape:
            raise SafetyNeuronsError(
                f"The neurons were found in {self.provenance.model}, whose layers have other widths than those of "
                f"{model.name}. Find them on this model."
            )

    def save(self, path: Path) -> None:
        """Write the indices and where they come from as safetensors; directions are kept in a file of their own."""
        tensors = {f"rejection.{point}": value for point, value in enumerate(self.rejection)}
        tensors |= {f"conformity.{point}": value for point, value in enumerate(self.conformity)}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, self.metadata())

    @classmethod
    def load(cls, path: Path, directions: Path | None = None) -> Self:
        """Read what `save` wrote, with the directions of another file.

        Raises:
            SafetyNeuronsError: a file is missing or broken.
        """
        tensors, metadata = read_tensors(path)
        try:
            described = json.loads(metadata["neurons"])
            widths, layers = described["widths"], described["layers"]
            provenance = Provenance(**described["provenance"])
            significant = provenance.significant
            provenance = replace(
                provenance,
                parameters_per_neuron=tuple(provenance.parameters_per_neuron),
                significant=None if significant is None else tuple(significant),
            )
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
    """Per layer the indices at which a mask is true."""
    return tuple(mask.nonzero().flatten() for mask in masks)
