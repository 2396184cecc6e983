"""Models in the local cache of the Hugging Face Hub, and whether the hub can be reached."""

from dataclasses import dataclass
from pathlib import Path

from safety_neurons.core.addresses import without_credentials
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import read_object

# What a folder of a model is, and what a folder of a PEFT adapter is.
MODEL_CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
TIMEOUT_SECONDS = 10
GET_AGAIN = "Get this file again from where the model comes from."


@dataclass(frozen=True)
class Snapshot:
    """A commit of a model in the hub's cache, and which of its files are missing there."""

    folder: Path
    missing: tuple[str, ...]

    @property
    def commit(self) -> str:
        return self.folder.name


def snapshot(hub_id: str) -> Snapshot | None:
    """The commit that `main` is in the local cache; None if neither a model nor an adapter of this id is cached.

    Raises:
        SafetyNeuronsError: the id is not valid.
    """
    for config in (MODEL_CONFIG, ADAPTER_CONFIG):
        if (path := _cached(hub_id, config)) is not None:
            missing = missing_files(path.parent)
            if missing == ("tokenizer_config.json",) and _is_known_to_lack(hub_id, missing[0]):
                missing = ()
            return Snapshot(path.parent, missing)
    return None


def hub_identity(hub_id: str) -> str | None:
    """The commit of the weights in the local cache of the Hugging Face Hub; None if they are not cached."""
    found = snapshot(hub_id)
    return None if found is None or found.missing else found.commit


def missing_files(folder: Path) -> tuple[str, ...]:
    """The files without which a folder is not a complete model, or a complete adapter."""
    if not (folder / MODEL_CONFIG).exists():
        return () if (folder / ADAPTER_WEIGHTS).exists() else (ADAPTER_WEIGHTS,)
    missing = [] if (folder / WEIGHTS).exists() else _missing_weights(folder)
    if not (folder / "tokenizer_config.json").exists():
        missing.append("tokenizer_config.json")
    vocabularies = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken", "tekken.json")
    if not any(path.exists() for pattern in vocabularies for path in folder.glob(pattern)):
        missing.append("tokenizer.json")
    return tuple(missing)


def _missing_weights(folder: Path) -> list[str]:
    index = folder / WEIGHTS_INDEX
    if not index.exists():
        return [WEIGHTS]
    files = sorted(set(shards(index).values()))
    return [name for name in files if not (folder / name).exists()]


def shards(index: Path) -> dict[str, str]:
    """The file of each weight, from the index of a checkpoint in several files.

    Raises:
        SafetyNeuronsError: the index is broken.
    """
    found = read_object(index, GET_AGAIN).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise SafetyNeuronsError(f"{index} has no weight_map, which says where the weights are. {GET_AGAIN}")
    return found


def _cached(hub_id: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(hub_id, file)
    except HFValidationError as error:
        raise SafetyNeuronsError(f"{hub_id!r} is not a valid hub id: {error}") from error
    return Path(path) if isinstance(path, str) else None


def _is_known_to_lack(hub_id: str, file: str) -> bool:
    """Whether the cache has noted that there is no such file in the repository."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(hub_id, file) is _CACHED_NO_EXIST


def why_unreachable() -> str | None:
    """Why nothing can be downloaded from the hub; None if it answers.

    `from_pretrained` itself would try again for minutes.
    """
    import httpx2
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        # The client that downloads, with its proxies and certificates. Any answer will do.
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
    # A proxy that the client cannot use is an InvalidURL, a ValueError or an ImportError.
    except (errors.HTTPError, httpx2.InvalidURL, OSError, ValueError, ImportError) as error:
        # The addresses of a mirror and of a proxy may hold a password.
        return without_credentials(f"no connection to {constants.ENDPOINT}: {str(error) or type(error).__name__}")
    return None


def fetch_adapter(hub_id: str) -> Path | None:
    """Download a repository that holds an adapter and no model; None if it does not.

    Raises:
        OSError: the repository does not exist, is gated, or the download failed.
    """
    from huggingface_hub import HfApi, snapshot_download

    files = set(HfApi().list_repo_files(hub_id))
    if MODEL_CONFIG in files or ADAPTER_CONFIG not in files:
        return None
    # Not in subfolders, where trainers put checkpoints.
    wanted = [
        name for name in files if "/" not in name and name.endswith((".json", ".safetensors", ".jinja", ".model"))
    ]
    return Path(snapshot_download(hub_id, allow_patterns=wanted))


def fetch_model(hub_id: str) -> Path:
    """Download a model: its small files first, then the safetensors files that hold its weights.

    Raises:
        OSError: the repository does not exist, is gated, or the download failed.
        SafetyNeuronsError: its index of weights is broken.
    """
    from huggingface_hub import HfApi, snapshot_download

    files = HfApi().list_repo_files(hub_id)
    ends = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
    small = [name for name in files if name.endswith(ends) and ("/" not in name or name.endswith(".jinja"))]
    folder = Path(snapshot_download(hub_id, allow_patterns=small))
    index = folder / WEIGHTS_INDEX
    weights = {WEIGHTS} if WEIGHTS in files or not index.exists() else set(shards(index).values())
    # Of the same commit.
    return Path(snapshot_download(hub_id, allow_patterns=[*small, *weights], revision=folder.name))
