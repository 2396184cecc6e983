"""Where a model's name leads and which exact weights that is, answered without loading a model.

Weights in installed packages and .gguf files are unpacked into the cache on first use: dequantizing a GGUF file takes
about a minute for half a billion parameters. The result is an ordinary transformers folder (bfloat16, the precision of
the original) named after the file's checksum.
"""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import atomic_path, cache_folder, disk_errors, file_sha256, fingerprint
from safety_neurons.core.plugins import did_you_mean
from safety_neurons.core.progress import Listener, Silence
from safety_neurons.models.presets import PRESETS, Preset, WeightsPackage

CHUNK = 1 << 22


def locate(name: str, listener: Listener = Silence()) -> tuple[str, str | None]:
    """The argument for `from_pretrained`, and the identity of the weights if it is known before loading.

    Weights in packages and .gguf files are unpacked the first time; the listener shows that.

    Raises:
        SafetyNeuronsError: the name is not a preset, a path of a model or a hub id.
    """
    path = Path(os.path.expanduser(name))
    if preset := PRESETS.get(name):
        folder = unpack_preset(preset, listener)
        if folder is not None and preset.package is not None:
            return str(folder), preset.package.sha256
        return preset.hub_id, None
    if path.suffix == ".gguf":
        if not path.is_file():
            raise SafetyNeuronsError(f"The model file {path} does not exist.")
        folder, sha256 = unpack_gguf(path, listener)
        return str(folder), sha256
    if path.is_dir():
        if not (path / "config.json").exists():
            raise SafetyNeuronsError(f"{path} is not a transformers model: it has no config.json.")
        return str(path), folder_identity(path)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name, None
    raise SafetyNeuronsError(
        f"There is no model called {name!r}. {did_you_mean(name, PRESETS, 0.4)}Use a preset "
        f"({', '.join(PRESETS)}), a hub id such as Qwen/Qwen3-0.6B, a folder, or a .gguf file. "
        "`safety-neurons list models` shows what is available here."
    )


def hub_identity(hub_id: str) -> str | None:
    """The commit of the weights in the local cache of the Hugging Face Hub; None if they are not cached."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(hub_id, "config.json")
    except HFValidationError as error:
        raise SafetyNeuronsError(f"{hub_id!r} is not a valid hub id: {error}") from error
    return Path(path).parent.name if isinstance(path, str) else None


def availability(preset: Preset) -> tuple[str, str]:
    """Whether the weights of a preset are on this machine, and where they are or how to get them."""
    package = preset.package
    if package is not None:
        if model_folder(package.sha256).exists():
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


def model_folder(sha256: str) -> Path:
    """The folder of the unpacked GGUF file with this checksum."""
    return cache_folder() / "models" / sha256[:16]


def unpack_preset(preset: Preset, listener: Listener = Silence()) -> Path | None:
    """The transformers folder of a preset's weights package; None if the package is not installed.

    Raises:
        SafetyNeuronsError: the installed parts do not match the preset's checksum, or the disk is full.
    """
    package = preset.package
    if package is None:
        return None
    folder = model_folder(package.sha256)
    if folder.exists():
        return folder
    parts = installed_parts(package)
    if parts is None:
        return None
    if len(parts) == 1:
        _check(file_sha256(parts[0]), package, preset)
        return _unpack(parts[0], folder, listener, preset.name)
    whole = cache_folder() / "gguf" / f"{preset.name}.{os.getpid()}.gguf"
    with atomic_path(whole) as temporary:
        digest = hashlib.sha256()
        with temporary.open("wb") as output:
            for chunk in _chunks(parts):
                digest.update(chunk)
                output.write(chunk)
        _check(digest.hexdigest(), package, preset)
    try:
        return _unpack(whole, folder, listener, preset.name)
    finally:
        whole.unlink(missing_ok=True)


def unpack_gguf(path: Path, listener: Listener = Silence()) -> tuple[Path, str]:
    """The transformers folder of a .gguf file, and the file's SHA-256."""
    sha256 = file_sha256(path)
    folder = model_folder(sha256)
    return (folder if folder.exists() else _unpack(path, folder, listener, path.name)), sha256


def folder_identity(folder: Path) -> str:
    """Identity of a folder of weights: a hash of the names, sizes and samples of the bytes of its files."""
    digest = hashlib.sha256()
    # Chat templates with names lie in a folder of their own.
    for path in [*sorted(folder.glob("*")), *sorted(folder.glob("*/*.jinja"))]:
        if path.suffix not in (".json", ".safetensors", ".jinja", ".model", ".txt", ".py") or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            for start in sorted({0, *(size * part // 32 for part in range(32))}):
                file.seek(start)
                digest.update(file.read(1 << 16))
    return digest.hexdigest()


def path_identity(name: str | Path | None) -> str | None:
    """Content hash of the file, or of the folder with a model or other files, that `name` is; None for other names."""
    path = Path(os.path.expanduser(name or ""))
    if not name or not os.path.exists(path):
        return None
    if path.is_file():
        return file_sha256(path)
    if (path / "config.json").is_file():
        return folder_identity(path)
    files = sorted(inside for inside in path.rglob("*") if inside.is_file())
    return fingerprint([[str(inside.relative_to(path)), file_sha256(inside)] for inside in files])


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


def _unpack(gguf: Path, folder: Path, listener: Listener, name: str) -> Path:
    with listener.task(f"unpacking {name}", 1) as advance:
        _convert(gguf, folder)
        advance(1)
    return folder


def _convert(gguf: Path, folder: Path) -> Path:
    """Dequantize a GGUF file into a transformers folder that appears only when it is complete."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    transformers.logging.disable_progress_bar()
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        try:
            where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
            tokenizer = AutoTokenizer.from_pretrained(**where)
            model = AutoModelForCausalLM.from_pretrained(
                **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
            )
        except OSError:
            raise
        except Exception as error:
            # The file is untrusted input, and its readers raise anything: struct.error, KeyError, and a bare Exception
            # in the tokenizers library.
            raise SafetyNeuronsError(
                f"{gguf} is not a GGUF file that transformers can read ({type(error).__name__}: {error}). "
                "Check that the download is complete and that the architecture is supported."
            ) from error
        # A model loaded from GGUF cannot be saved while it is marked as quantized.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        with disk_errors(folder):
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            for path in temporary.iterdir():
                path.chmod(0o644)
            temporary.chmod(0o755)
            if not folder.exists():
                os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
