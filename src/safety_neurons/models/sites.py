"""MLP neurons of a layer: the matrix that writes them to the residual stream, and the rows that read it."""

from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from safety_neurons.errors import SafetyNeuronsError


@dataclass(frozen=True)
class ReadMatrix:
    """One block of rows that feeds the neurons: row `offset + i` of `module` feeds neuron i."""

    name: str
    module: nn.Module
    offset: int


@dataclass(frozen=True)
class NeuronSite:
    """The neurons of one layer: the matrix that writes them to the residual stream, and the rows that read it.

    `scale` is what the block multiplies the write with before it is added: one number, or one number per residual
    dimension where a norm follows the MLP (its gain).
    """

    layer: int
    name: str
    write: nn.Module
    reads: tuple[ReadMatrix, ...]
    width: int
    post_norm: bool = False
    scale: Tensor | float = field(default=1.0, compare=False)

    def write_vectors(self, neurons: Tensor | None = None) -> Tensor:
        """What one unit of each neuron's activation adds to the residual stream: float32 [neurons, hidden]."""
        weight = rows_by_neuron(self.write)
        if neurons is not None:
            weight = weight[neurons.to(weight.device)]
        weight = weight.detach().float()
        return weight * (self.scale.to(weight.device) if isinstance(self.scale, Tensor) else self.scale)

    @cached_property
    def parameters_per_neuron(self) -> int:
        """Weights that belong to one neuron: its column of the write matrix, its rows of the read matrices."""
        count = rows_by_neuron(self.write).shape[1]
        for read in self.reads:
            count += matrix_shape(read.module)[0] + (getattr(read.module, "bias", None) is not None)
        return count


@dataclass(frozen=True)
class Coverage:
    """How much of the model's MLPs is read."""

    layers: int
    layers_total: int
    neurons: int

    def __str__(self) -> str:
        return f"{self.layers}/{self.layers_total} layers, {self.neurons:,} neurons"


def is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def matrix_shape(module: nn.Module) -> tuple[int, int]:
    """(input, output) size of a linear layer; Conv1D keeps its weight the other way round."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def rows_by_neuron(module: nn.Module) -> Tensor:
    """The write matrix as a view [neurons, hidden]: writing to it writes to the weight."""
    assert isinstance(module.weight, Tensor)
    return module.weight if isinstance(module, Conv1D) else module.weight.T


def rows_by_output(module: nn.Module) -> Tensor:
    """A read matrix as a view [outputs, hidden]: writing to it writes to the weight."""
    assert isinstance(module.weight, Tensor)
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers: the outermost module list that is as long as the config says.

    Raises:
        SafetyNeuronsError: there is none.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise SafetyNeuronsError(
        f"The decoder layers of {type(model).__name__} were not found: no module list has {count} entries. "
        "Its architecture cannot be read; a dense decoder-only model in transformers' own layout can."
    )
