"""A model besides the one under test: one that judges, compares, or translates."""

import functools
from typing import TYPE_CHECKING

from safety_neurons.engines.engine import Engine

if TYPE_CHECKING:
    from safety_neurons.engines.endpoint import Endpoint


def engine_for(endpoint: str | None, model: str, chat_template: str | None = None) -> Engine:
    """A preset, a hub id, a folder or a .gguf file that is loaded here; with `endpoint` a model behind that server.

    `chat_template` is for a model that is loaded here and brings none.

    Raises:
        SafetyNeuronsError: the model cannot be loaded, or the address is none.
    """
    return _loaded(model, chat_template) if endpoint is None else served(endpoint, model)


@functools.cache
def served(endpoint: str, model: str) -> "Endpoint":
    """One for all who ask this server for this model, so that what is asked is counted together."""
    from safety_neurons.engines.endpoint import Endpoint

    return Endpoint(endpoint, model)


# Kept between calls, but not many: the model under test is in memory, too.
@functools.lru_cache(maxsize=2)
def _loaded(name: str, chat_template: str | None) -> Engine:
    from safety_neurons.engines.in_process import InProcess
    from safety_neurons.models.load import load

    model = load(name)
    if not model.tokenizer.chat_template and chat_template is not None:
        model.tokenizer.chat_template = chat_template
    return InProcess(model)
