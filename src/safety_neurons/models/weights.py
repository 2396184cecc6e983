"""Weights that come in installed packages or .gguf files, unpacked once into the cache.

A GGUF file holds quantized blocks; reading it takes about a minute for half a billion parameters. It is done once:
the dequantized weights (bfloat16, the precision of the original), the tokenizer and the template are kept as an
ordinary transformers folder in the cache, named by the file's checksum.
"""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import atomic_path, cache_folder, disk_errors
from safety_neurons.core.progress import Listener, Silence
from safety_neurons.models.presets import Preset, WeightsPackage

CHUNK = 1 << 22


def installed_parts(package: WeightsPackage) -> list[Path] | None:
    """The files of an installed weights package in order, or None where a part is not installed."""
    paths = []
    for module, inside in package.parts:
        # The package's own code is never imported, only its data file is read.
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return None
        path = Path(spec.origin).parent / inside
        if not path.exists():
            return None
        paths.append(path)
    return paths


def model_folder(sha256: str) -> Path:
    """Where the unpacked form of a GGUF file with this checksum is kept."""
    return cache_folder() / "models" / sha256[:16]


def unpack_preset(preset: Preset, listener: Listener = Silence()) -> Path | None:
    """The transformers folder of a preset's weights package; None where the package is not installed.

    Raises:
        SafetyNeuronsError: the installed parts do not hash to what the preset says, or the disk is full.
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
        found = file_sha256(parts[0])
        _check(found, package, preset)
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


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_identity(folder: Path) -> str:
    """What tells one folder of weights from another: names, sizes and samples of its files' bytes."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix not in (".json", ".safetensors", ".jinja", ".model"):
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            for start in sorted({0, *(size * part // 32 for part in range(32))}):
                file.seek(start)
                digest.update(file.read(1 << 16))
    return digest.hexdigest()


def _chunks(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk


def _check(found: str, package: WeightsPackage, preset: Preset) -> None:
    if found != package.sha256:
        raise SafetyNeuronsError(
            f"The weights of {preset.name} are not the ones that were published: SHA-256 {found}, expected "
            f"{package.sha256}. Reinstall them ({package.install}, with --force-reinstall); nothing was kept."
        )


def _unpack(gguf: Path, folder: Path, listener: Listener, name: str) -> Path:
    with listener.task(f"unpacking {name}", 1) as advance:
        _convert(gguf, folder)
        advance(1)
    return folder


def _convert(gguf: Path, folder: Path) -> Path:
    """Dequantize a GGUF file into a transformers folder, in one step as seen from outside."""
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
            # The file is untrusted input, and its readers raise whatever they stumble over: struct.error, KeyError,
            # and from the tokenizers library a bare Exception.
            raise SafetyNeuronsError(
                f"{gguf} is not a GGUF file that transformers can read ({type(error).__name__}: {error}). "
                "Check that the download is complete and that the architecture is supported."
            ) from error
        # A model that was loaded from GGUF refuses to be saved while these say that it is still quantized.
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
