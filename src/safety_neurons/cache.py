"""The one folder that keeps what was downloaded."""

import os
from pathlib import Path

from safety_neurons.errors import SafetyNeuronsError


def cache_folder() -> Path:
    """The folder for downloads: $SAFETY_NEURONS_CACHE, else $XDG_CACHE_HOME/safety-neurons, else ~/.cache.

    The folder is not created here: whoever writes into it does that.

    Raises:
        SafetyNeuronsError: there is no home folder to put it in.
    """
    try:
        own = os.environ.get("SAFETY_NEURONS_CACHE", "").strip()
        if own:
            return Path(own).expanduser().absolute()
        shared = os.environ.get("XDG_CACHE_HOME", "").strip()
        # The XDG Base Directory Specification says that a relative path here is to be ignored.
        if shared and os.path.isabs(shared):
            return Path(shared) / "safety-neurons"
        return Path.home() / ".cache" / "safety-neurons"
    except RuntimeError as error:
        raise SafetyNeuronsError(
            f"No home folder was found for the cache ({error}). "
            "Set SAFETY_NEURONS_CACHE to the absolute path of a folder for downloads."
        ) from error
