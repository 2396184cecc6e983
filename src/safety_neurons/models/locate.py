"""Where a model's name leads and which exact weights that is, answered without loading a model.

Weights in installed packages and .gguf files are unpacked into the cache on first use: dequantizing a GGUF file takes
about a minute for half a billion parameters. The result is an ordinary transformers folder (bfloat16, the precision of
the original) named after the file's checksum.
"""

import hashlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import disk_errors, file_sha256
from safety_neurons.core.plugins import did_you_mean, listed
from safety_neurons.core.progress import Listener, Silence
from safety_neurons.core.temporary import temporary_path
from safety_neurons.models.gguf_files import convert, gguf_parts
from safety_neurons.models.hub import ADAPTER_CONFIG, GET_AGAIN, MODEL_CONFIG, hub_identity, snapshot
from safety_neurons.models.identity import folder_identity
from safety_neurons.models.model_files import check_card, check_not_pointer, model_object
from safety_neurons.models.presets import PRESETS, Preset, WeightsPackage
from safety_neurons.models.unpacked import is_unpacked, model_folder, unpacking

CHUNK = 1 << 22


class Located(NamedTuple):
    """The argument for `from_pretrained`, and the identity of the weights if it is known before loading.

    `adapter` is the folder or hub id of a PEFT adapter to merge into them. `notes` is what the user must know of it.
    """

    source: str
    identity: str | None
    adapter: str | None = None
    notes: tuple[str, ...] = ()


def locate(name: str, listener: Listener = Silence(), adapter: str | None = None) -> Located:
    """Find a model by a preset's name, a path or a hub id; a PEFT adapter leads to its base.

    Weights in packages and .gguf files are unpacked the first time; the listener shows that.

    Args:
        adapter: a folder or hub id of a PEFT adapter to merge into the model.

    Raises:
        SafetyNeuronsError: the name is not a preset, a path of a model or a hub id, or an adapter's base is not known.
    """
    found = _place(name, listener)
    if _is_adapter(found.source):
        if adapter is not None:
            raise SafetyNeuronsError(f"{name} is an adapter itself: pass its base as the model, and one adapter.")
        base = _base_of(Path(found.source), listener)
        note = f"{name} is an adapter: it is merged in memory into its base {base.source}."
        return Located(base.source, _joint(base.identity, found.identity), found.source, (note,))
    if adapter is not None:
        folder = Path(adapter).expanduser()
        added = Located(str(folder), folder_identity(folder)) if folder.is_dir() else _place(adapter, listener)
        if Path(added.source).is_dir() and not (Path(added.source) / ADAPTER_CONFIG).is_file():
            raise SafetyNeuronsError(f"{adapter} is not a PEFT adapter: it has no {ADAPTER_CONFIG}. Correct its path.")
        return Located(found.source, _joint(found.identity, added.identity), added.source)
    if (Path(found.source) / ADAPTER_CONFIG).is_file():
        note = (
            f"{name} holds a PEFT adapter beside the model. It is not used: to merge it, pass adapter={found.source}."
        )
        return found._replace(notes=(note,))
    return found


def _place(name: str, listener: Listener) -> Located:
    """Where one name leads, before an adapter is followed to its base."""
    path = Path(os.path.expanduser(name))
    if preset := PRESETS.get(name):
        folder = unpack_preset(preset, listener)
        if folder is not None and preset.package is not None:
            return Located(str(folder), preset.package.sha256)
        return _on_hub(preset.hub_id, listener)
    if path.suffix.lower() == ".gguf":
        folder, sha256 = unpack_gguf(path, listener)
        return Located(str(folder), sha256)
    if path.is_dir():
        if not (path / MODEL_CONFIG).exists() and not (path / ADAPTER_CONFIG).exists():
            files = sorted(file.name for file in path.glob("*.gguf"))
            instead = f" It holds {files[0]}: pass the path of that file." if files else _inside(path)
            raise SafetyNeuronsError(f"{path} is not a transformers model: it has no {MODEL_CONFIG}.{instead}")
        return Located(str(path), folder_identity(path))
    if path.is_file():
        raise SafetyNeuronsError(
            f"{path} is a file, not a model: pass its folder if that is the model (with its {MODEL_CONFIG}), or a "
            ".gguf file."
        )
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _on_hub(name, listener)
    raise SafetyNeuronsError(
        f"There is no model called {name!r}. {did_you_mean(name, PRESETS, 0.4)}Use a preset "
        f"({', '.join(PRESETS)}), a hub id such as Qwen/Qwen3-0.6B, a folder, or a .gguf file. "
        "`safety-neurons list models` shows what is available here."
    )


def _inside(path: Path) -> str:
    """Which folders in a folder hold a model or an adapter, for a message."""
    names = sorted({file.parent.name for name in (MODEL_CONFIG, ADAPTER_CONFIG) for file in path.glob(f"*/{name}")})
    return f" Pass the path of a model in it: {listed(names)}." if names else ""


def _on_hub(hub_id: str, listener: Listener) -> Located:
    """A model of the hub: its folder in the hub's cache if it is complete there, so that nothing asks the network."""
    cached = snapshot(hub_id)
    if cached is None or cached.missing:
        return Located(hub_id, None)
    listener.say(f"{hub_id}: commit {cached.commit[:12]} in the hub's cache (a newer one is not asked for).")
    return Located(str(cached.folder), cached.commit)


def _is_adapter(source: str) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (Path(source) / ADAPTER_CONFIG).is_file() and not (Path(source) / MODEL_CONFIG).exists()


def _base_of(folder: Path, listener: Listener) -> Located:
    """The base model that an adapter's config names.

    Raises:
        SafetyNeuronsError: it names none, or one that is not here.
    """
    config = model_object(folder / ADAPTER_CONFIG)
    base, revision = config.get("base_model_name_or_path") or _base_in_card(folder), config.get("revision")
    way_out = "Pass the base as the model, and this folder as adapter."
    if not base or not isinstance(base, str):
        raise SafetyNeuronsError(f"The adapter {folder} does not name its base model. {way_out}")
    if (folder / base).is_dir() and not Path(base).is_dir():
        base = str(folder / base)
    # A preset's package stands in for what is not in the hub's cache.
    preset = next((preset for preset in PRESETS.values() if preset.hub_id == base), None)
    if preset is not None and not Path(base).is_dir() and hub_identity(base) is None:
        base = preset.name
    try:
        found = _place(base, listener)
    except SafetyNeuronsError as error:
        raise SafetyNeuronsError(
            f"The base model of the adapter {folder} is {base}, which was not found. {way_out}"
        ) from error
    if _is_adapter(found.source):
        raise SafetyNeuronsError(
            f"The base model of the adapter {folder} is {base}, another adapter. Merge that first."
        )
    if revision not in (None, "main", found.identity):
        raise SafetyNeuronsError(
            f"The adapter {folder} was trained on revision {revision} of {base}. Download that revision to a folder. "
            f"{way_out}"
        )
    return found


def _base_in_card(folder: Path) -> str | None:
    """The base in an adapter's model card, where PEFT writes it as well."""
    import yaml  # type: ignore[import-untyped]
    from huggingface_hub.repocard import metadata_load

    path = folder / "README.md"
    if not path.is_file():
        return None
    check_card(path)
    try:
        card = metadata_load(path) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SafetyNeuronsError(
            f"{path} has no valid YAML at its beginning ({' '.join(str(error).split())}). {GET_AGAIN}"
        ) from error
    named = card.get("base_model")
    return named[0] if isinstance(named, list) and len(named) == 1 else named if isinstance(named, str) else None


def _joint(*identities: str | None) -> str | None:
    """One identity of several weights that are loaded together; None if one of them is not known."""
    known = [identity for identity in identities if identity is not None]
    return hashlib.sha256(" ".join(known).encode()).hexdigest() if len(known) == len(identities) else None


def availability(preset: Preset) -> tuple[str, str]:
    """Whether the weights of a preset are on this machine, and where they are or how to get them."""
    package = preset.package
    if package is not None:
        if is_unpacked(model_folder(package.sha256)):
            return "yes", f"unpacked in the cache ({preset.hub_id})"
        if installed_parts(package) is not None:
            return "yes", f"in an installed package ({preset.hub_id})"
    if hub_identity(preset.hub_id) is not None:
        return "yes", f"in the hub's cache ({preset.hub_id})"
    gate = " (gated: set HF_TOKEN)" if preset.gated else ""
    return "no", (f"{package.install}, or " if package else "") + f"hub: {preset.hub_id}{gate}"


def installed_parts(package: WeightsPackage) -> list[Path] | None:
    """The files of an installed weights package in order; None if a part is not installed."""
    paths = []
    for module, inside in package.parts:
        # The package is not imported: only its data file is read.
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return None
        path = Path(spec.origin).parent / inside
        if not path.exists():
            return None
        paths.append(path)
    return paths


def unpack_preset(preset: Preset, listener: Listener = Silence()) -> Path | None:
    """The transformers folder of a preset's weights package; None if the package is not installed.

    Raises:
        SafetyNeuronsError: the installed parts do not match the preset's checksum, or the disk is full.
    """
    package = preset.package
    if package is None:
        return None
    folder = model_folder(package.sha256)
    if is_unpacked(folder):
        return folder
    parts = installed_parts(package)
    if parts is None:
        return None
    with unpacking(folder, listener, preset.name) as needed:
        if needed:
            _unpack_parts(parts, folder, listener, preset, package)
    return folder


def _unpack_parts(parts: list[Path], folder: Path, listener: Listener, preset: Preset, package: WeightsPackage) -> None:
    if len(parts) == 1:
        _check(file_sha256(parts[0]), package, preset)
        _unpack([parts[0]], folder, listener, preset.name)
        return
    with temporary_path(folder.with_name(f"{preset.name}.gguf")) as whole:
        with disk_errors(whole), whole.open("xb") as output:
            digest = hashlib.sha256()
            for chunk in _chunks(parts):
                digest.update(chunk)
                output.write(chunk)
        _check(digest.hexdigest(), package, preset)
        _unpack([whole], folder, listener, preset.name)


def unpack_gguf(path: Path, listener: Listener = Silence()) -> tuple[Path, str]:
    """The transformers folder of a .gguf file or of all parts of a split one, and its SHA-256 or that of theirs.

    Raises:
        SafetyNeuronsError: the file or a part is missing, or is not a complete model.
    """
    parts = gguf_parts(path)
    for part in parts:
        check_not_pointer(part)
    sums = [file_sha256(part, GET_AGAIN) for part in parts]
    sha256 = sums[0] if len(sums) == 1 else hashlib.sha256(" ".join(sums).encode()).hexdigest()
    folder = model_folder(sha256)
    if not is_unpacked(folder):
        with unpacking(folder, listener, str(path)) as needed:
            if needed:
                _unpack(parts, folder, listener, str(path))
    return folder, sha256


def _chunks(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk


def _check(sha256: str, package: WeightsPackage, preset: Preset) -> None:
    if sha256 != package.sha256:
        raise SafetyNeuronsError(
            f"The weights of {preset.name} differ from the published ones: SHA-256 {sha256}, expected "
            f"{package.sha256}. Reinstall them ({package.install}, with --force-reinstall)."
        )


def _unpack(gguf: Sequence[Path], folder: Path, listener: Listener, name: str) -> None:
    with listener.task(f"unpacking {name}", 1) as advance:
        convert(gguf, folder, name)
        advance(1)
