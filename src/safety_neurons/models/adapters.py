"""PEFT adapters (LoRA, DoRA, IA3 ...): which base they belong to, and merging them into its weights in memory."""

import importlib.util
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.plugins import listed
from safety_neurons.models.declared_sizes import bounded_build, check_declared
from safety_neurons.models.hub import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MODEL_CONFIG
from safety_neurons.models.model_files import check_files, model_object
from safety_neurons.models.stored_sizes import stored_sizes

# What PEFT puts before the names of the base's modules.
_PREFIX = "base_model.model."
# What it puts before the names of modules that were trained whole, or wrapped.
_SAVED, _WRAPPED = ".modules_to_save", ".base_layer"
# Settings that make PEFT import a module, or load other adapters.
_NOT_FOLLOWED = ("megatron_config", "adapters", "arrow_config")
_PATTERNS = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "rank_pattern", "alpha_pattern")
_MOST_REPETITIONS = 16


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
    config = model_object(folder / ADAPTER_CONFIG)
    check_declared(folder / ADAPTER_CONFIG, config, stored_sizes([folder / ADAPTER_WEIGHTS]))
    _check_config(folder / ADAPTER_CONFIG, config)
    if quantized:
        raise SafetyNeuronsError(
            f"The adapter {folder} is merged into the base's full weights: load it without quantize."
        )


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Check that an adapter's config neither names code or other adapters, nor holds patterns that take forever.

    Raises:
        SafetyNeuronsError: it does.
    """
    for key in _NOT_FOLLOWED:
        if config.get(key):
            raise SafetyNeuronsError(
                f"{path} sets {key}, which would load code or files from elsewhere, and is not followed. Remove it, or "
                "merge the adapter with PEFT."
            )
    patterns: list[str] = []
    for key in _PATTERNS:
        value = config.get(key)
        patterns += [value] if isinstance(value, str) else value if isinstance(value, list | dict) else ()
    for pattern in patterns:
        # Python's patterns take exponential time only where a repeated group is repeated, and are polynomial in the
        # number of repetitions.
        text = str(pattern)
        if re.search(r"\)\s*[*+{]", text) or len(re.findall(r"[*+{]", text)) > _MOST_REPETITIONS:
            raise SafetyNeuronsError(
                f"{path} chooses modules by the pattern {text[:100]!r}, which could take forever. Name the modules "
                "in a list instead."
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
        stored = stored_sizes([folder / ADAPTER_WEIGHTS])
        with warnings.catch_warnings(), bounded_build(stored, only_meta=False):
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
        LookupError,
        RuntimeError,
        TypeError,
        AttributeError,
        ArithmeticError,
        MemoryError,
        ImportError,
        AssertionError,
        OSError,
        re.error,
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
