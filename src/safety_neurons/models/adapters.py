"""PEFT adapters (LoRA, DoRA, IA3 ...): which base they belong to, and merging them into its weights in memory."""

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.plugins import listed
from safety_neurons.models.hub import ADAPTER_CONFIG, ADAPTER_WEIGHTS, GET_AGAIN, MODEL_CONFIG
from safety_neurons.models.model_files import check_files

# What PEFT puts before the names of the base's modules.
_PREFIX = "base_model.model."
# What it puts before the names of modules that were trained whole, or wrapped.
_SAVED, _WRAPPED = ".modules_to_save", ".base_layer"


def check_adapter(folder: Path, quantized: bool) -> None:
    """Check, before the base is loaded, that an adapter can be merged.

    Raises:
        SafetyNeuronsError: PEFT is not installed, the folder is incomplete or broken, or the base is loaded quantized.
    """
    if importlib.util.find_spec("peft") is None:
        raise SafetyNeuronsError(f"{folder} is a PEFT adapter, which needs PEFT: pip install 'safety-neurons[lora]'.")
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / file).is_file():
            raise SafetyNeuronsError(
                f"{folder} is not a complete PEFT adapter: it has no {file}. Pass a folder that PEFT's "
                "save_pretrained wrote (as safetensors; pickled weights are not read)."
            )
    check_files(folder)
    try:
        _shapes(folder / ADAPTER_WEIGHTS)
    except SafetensorError as error:
        raise SafetyNeuronsError(f"{folder / ADAPTER_WEIGHTS} is broken ({error}). {GET_AGAIN}") from error
    if quantized:
        raise SafetyNeuronsError(
            f"The adapter {folder} is merged into the base's full weights: load it without quantize."
        )


def has_own_tokenizer(folder: Path) -> bool:
    """Whether an adapter was saved with the tokenizer that it was trained with."""
    beside = (folder / MODEL_CONFIG).exists()
    return not beside and (folder / "tokenizer_config.json").exists()


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Merge an adapter into the weights of its base, which is then a plain model again.

    Raises:
        SafetyNeuronsError: the adapter does not fit the model, or is of a kind that has nothing to merge.
    """
    from peft import PeftConfig, PeftModel

    try:
        shapes = _shapes(folder / ADAPTER_WEIGHTS)
        config = PeftConfig.from_pretrained(str(folder))
        if config.is_prompt_learning:
            raise SafetyNeuronsError(
                f"The adapter {folder} cannot be merged: {config.peft_type.value} changes the prompt, not the weights."
            )
        _fit_vocabulary(model, shapes, config)
        with warnings.catch_warnings():
            # What it warns of is an error below.
            warnings.simplefilter("ignore")
            changed: Any = PeftModel.from_pretrained(model, str(folder), config=config)
            # Loaded again, as only this says which weights were used.
            mapping = getattr(model, "_checkpoint_conversion_mapping", {})
            _check_all_used(folder, changed.load_adapter(str(folder), "default", key_mapping=mapping), shapes)
        if not hasattr(changed, "merge_and_unload"):
            raise SafetyNeuronsError(
                f"The adapter {folder} cannot be merged: {config.peft_type.value} has no such step."
            )
        merged: PreTrainedModel = changed.merge_and_unload(safe_merge=True)
    except (
        ValueError,
        KeyError,
        RuntimeError,
        TypeError,
        AttributeError,
        NotImplementedError,
        SafetensorError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SafetyNeuronsError(
            f"The adapter {folder} does not fit the model {model.config.name_or_path} ({type(model).__name__}): "
            f"{reason[:400]} Pass the base that it was trained on."
        ) from error
    # PEFT freezes the base, and torch multiplies slowly with frozen weights (see `models.forward`).
    for parameter in merged.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return merged


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _fit_vocabulary(model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]], config: Any) -> None:
    """Give the model as many embeddings as the adapter was trained with, and untie those that it changes apart."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = [_PREFIX + name for name, module in model.named_modules() if module in (embeddings, head)]
    inside = [key for key in shapes if any(key.startswith(f"{name}.") for name in names)]
    whole = {f"{name}{part}.weight" for name in names for part in ("", _SAVED, _WRAPPED)}
    rows = {shapes[key][0] for key in inside if key in whole}
    if len(rows) == 1 and rows != {embeddings.weight.shape[0]}:
        # The adapter holds all of the new rows.
        model.resize_token_embeddings(rows.pop(), mean_resizing=False)
        head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    if tied and inside and not getattr(config, "ensure_weight_tying", False):
        # Merged into one matrix, a change of the embeddings would change the head, too.
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
        model.all_tied_weights_keys = {}


def _check_all_used(folder: Path, result: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that the adapter changes the model with all of its weights, and lacks none.

    Raises:
        SafetyNeuronsError: it was made for another model.
    """
    # PEFT saves embeddings of another size a second time, under this name.
    unexpected = [
        key for key in result.unexpected_keys if key.replace(_SAVED, "") == key or key.replace(_SAVED, "") not in shapes
    ]
    problems = [
        f"{len(names)} {what} ({listed(sorted(names))})"
        for names, what in (
            (unexpected, "of its weights have no place in this one"),
            (result.missing_keys, "that this one needs are missing"),
        )
        if names
    ]
    if problems:
        raise SafetyNeuronsError(
            f"The adapter {folder} belongs to another model: {'; '.join(problems)}. Pass the base that it was trained "
            "on."
        )
