"""Merging a delta into its base: a plain transformers folder with a model card."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import Tensor
from transformers import GenerationConfig

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import disk_errors, exists, read_json, write_json, write_text
from safety_neurons.core.folders import atomic_folder, follow_umask
from safety_neurons.core.temporary import remove_abandoned
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.load import DTYPES
from safety_neurons.models.presets import PRESETS
from safety_neurons.tuning.delta import NeuronDelta
from safety_neurons.tuning.neuron_deltas import has_plain_weights, trainable_hook_points


def merge(delta: NeuronDelta, model: ChatModel, folder: Path, card: str) -> Path:
    """Write the tuned model as a transformers folder for `from_pretrained`; the model in memory does not change.

    The weights have the dtype of the base's checkpoint, or, if that has none (GGUF, a model made in memory), the dtype
    in which they were loaded.

    Args:
        card: the text of the folder's README.md (see `report.card.model_card`).

    Raises:
        SafetyNeuronsError: the folder exists, the disk is full, the delta belongs to other weights, or the base is
            loaded with less precision than its checkpoint: quantized, offloaded, or in a smaller dtype.
    """
    if exists(folder):
        raise SafetyNeuronsError(f"{folder} exists already. Choose another folder for the merged model.")
    dtype = checkpoint_dtype(model.name, model.identity) or model.model.dtype
    _check_holds_all(delta, model, dtype)
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder.parent, folder.name)
    with atomic_folder(folder) as temporary:
        with delta.apply(model), _valid_settings(model):
            model.model.save_pretrained(temporary, state_dict=_in_dtype(model, dtype))
        settings = model.model.generation_config.to_json_string()
        write_text(temporary / "generation_config.json", settings)
        config = read_json(temporary / "config.json")
        write_json(temporary / "config.json", config | {"dtype": str(dtype).removeprefix("torch.")})
        model.tokenizer.save_pretrained(temporary)
        write_text(temporary / "README.md", card)
        follow_umask(temporary)
    return folder


@contextlib.contextmanager
def _valid_settings(model: ChatModel) -> Iterator[None]:
    """Other generation settings while the context is open.

    transformers refuses to write settings that contradict each other, such as Vicuna's: a temperature for greedy
    answers.
    """
    own = model.model.generation_config
    model.model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.model.generation_config = own


def checkpoint_dtype(name: str, identity: str) -> torch.dtype | None:
    """The dtype in a checkpoint's config.json; None if it has none, or is unknown.

    Args:
        name: a preset, a hub id or a folder.
    """
    if preset := PRESETS.get(name):
        if preset.package is not None and identity == preset.package.sha256:
            return None
        name = preset.hub_id
    path: Any = Path(os.path.expanduser(name)) / "config.json"
    if not path.is_file():
        try:
            path = try_to_load_from_cache(name, "config.json")
        except HFValidationError:
            return None
    if not isinstance(path, str | Path):
        return None
    config = read_json(Path(path))
    named = [part.get(key) for part in (config, config.get("text_config") or {}) for key in ("dtype", "torch_dtype")]
    return next((DTYPES[said] for said in named if said in DTYPES), None)


def _check_holds_all(delta: NeuronDelta, model: ChatModel, dtype: torch.dtype) -> None:
    delta.check_base(model)
    hook_points = [hook_point for _, hook_point, _ in trainable_hook_points(model, delta.neurons)]
    if getattr(model.model, "hf_quantizer", None) is not None or not all(map(has_plain_weights, hook_points)):
        raise SafetyNeuronsError(
            f"The weights of {model.name} are quantized or not in memory, so a delta cannot be merged into them. Load "
            "the model without quantize, on devices that hold all of it."
        )
    if torch.promote_types(model.model.dtype, dtype) != model.model.dtype:
        precise, loaded = (str(one).removeprefix("torch.") for one in (dtype, model.model.dtype))
        raise SafetyNeuronsError(
            f"The weights of {model.name} are {precise}, and were loaded in {loaded}, which is less precise. Load them "
            f'with dtype="{precise}" to merge.'
        )


def _in_dtype(model: ChatModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """The model's weights by name, those of the model's dtype converted to another; tied weights stay tied."""
    cast: dict[tuple[int, torch.Size], Tensor] = {}

    def changed(value: Tensor) -> Tensor:
        if value.dtype != model.model.dtype:
            return value
        return cast.setdefault((value.data_ptr(), value.shape), value.to(dtype))

    return {name: changed(value) for name, value in model.model.state_dict().items()}
