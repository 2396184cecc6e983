"""Where a model's name leads, and which exact weights that is; answered without loading anything."""

import os
from pathlib import Path

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.plugins import did_you_mean
from safety_neurons.core.progress import Listener, Silence
from safety_neurons.models import weights
from safety_neurons.models.presets import PRESETS, Preset


def locate(name: str, listener: Listener = Silence()) -> tuple[str, str | None]:
    """What to hand to `from_pretrained`, and the identity of the weights where it is known before loading.

    Weights in packages and .gguf files are unpacked the first time; the listener shows that.

    Raises:
        SafetyNeuronsError: the name is neither a preset, nor on this disk, nor of the form of a hub id.
    """
    path = Path(os.path.expanduser(name))
    if preset := PRESETS.get(name):
        folder = weights.unpack_preset(preset, listener)
        if folder is not None and preset.package is not None:
            return str(folder), preset.package.sha256
        return preset.hub_id, None
    if path.suffix == ".gguf":
        if not path.is_file():
            raise SafetyNeuronsError(f"The model file {path} does not exist.")
        folder, sha256 = weights.unpack_gguf(path, listener)
        return str(folder), sha256
    if path.is_dir():
        if not (path / "config.json").exists():
            raise SafetyNeuronsError(f"{path} is not a transformers model: it has no config.json.")
        return str(path), weights.folder_identity(path)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name, None
    raise SafetyNeuronsError(
        f"There is no model called {name!r}. {did_you_mean(name, PRESETS, 0.4)}Give a preset "
        f"({', '.join(PRESETS)}), a hub id such as "
        "Qwen/Qwen3-0.6B, a folder, or a .gguf file. `safety-neurons list models` shows what is available here."
    )


def hub_identity(hub_id: str) -> str | None:
    """The commit of the hub's weights that are in the local cache; None where they are not."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(hub_id, "config.json")
    except HFValidationError as error:
        raise SafetyNeuronsError(f"{hub_id!r} is not a model name that the hub accepts: {error}") from error
    return Path(path).parent.name if isinstance(path, str) else None


def availability(preset: Preset) -> tuple[str, str]:
    """Whether a preset's weights are on this machine, and how to get them if not."""
    package = preset.package
    if package is not None:
        if weights.model_folder(package.sha256).exists():
            return "yes", f"unpacked in the cache ({preset.hub_id})"
        if weights.installed_parts(package) is not None:
            return "yes", f"in an installed package ({preset.hub_id})"
    if hub_identity(preset.hub_id) is not None:
        return "yes", f"in the hub's cache ({preset.hub_id})"
    gate = " (gated: set HF_TOKEN)" if preset.gated else ""
    return "no", (f"{package.install}, or " if package else "") + f"hub: {preset.hub_id}{gate}"
