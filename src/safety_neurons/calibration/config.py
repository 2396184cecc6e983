"""What can be chosen about a calibration besides its neurons, where it leads and how strong it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from safety_neurons.core.errors import SafetyNeuronsError

Toward = Literal["rejection", "conformity"]
Subset = Literal["both", "rejection", "conformity"]
PromptReach = int | Literal["template", "all"]
AnswerReach = int | Literal["all"]
Direction = Literal["position", "pooled"]
Edit = Literal["add", "clamp"]


@dataclass(frozen=True)
class CalibrationConfig:
    """How neurons are calibrated; `calibrate` says what each field means."""

    subset: Subset = "both"
    prompt_positions: PromptReach = 5
    generated_tokens: AnswerReach = 0
    direction: Direction = "position"
    edit: Edit = "add"
    keep_norm: bool = False
    layers: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        words: Mapping[str, object] = {"subset": Subset, "direction": Direction, "edit": Edit}
        for name, kind in words.items():
            if getattr(self, name) not in get_args(kind):
                raise SafetyNeuronsError(f"{name} is {' or '.join(get_args(kind))}, not {getattr(self, name)!r}.")
        reaches = {"prompt_positions": ("template", "all"), "generated_tokens": ("all",)}
        for name, names in reaches.items():
            value = getattr(self, name)
            if value not in names and not (type(value) is int and value >= 0):
                raise SafetyNeuronsError(f"{name} is a number from 0 on or {' or '.join(names)}, not {value!r}.")
        if self.layers is not None and not _is_range(self.layers):
            raise SafetyNeuronsError(f"layers are the first and the last one, such as 8 20, not {self.layers!r}.")


def _is_range(layers: tuple[int, ...]) -> bool:
    return len(layers) == 2 and all(type(layer) is int for layer in layers) and 0 <= layers[0] <= layers[1]
