"""A run with several processes, started by torchrun: process 0 owns it, the others help where it asks them to."""

import contextlib
import datetime
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import distributed

from safety_neurons.core.distributed import process_count, sync_errors
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Advance, ignore
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons import scores
from safety_neurons.neurons.find import find
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.runs.context import load_model, load_other_model
from safety_neurons.settings import Settings
from safety_neurons.tuning.config import Validate, Validation
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.delta import NeuronDelta
from safety_neurons.tuning.safetune import tune

# A process that dies closes its connections, and torchrun then ends the others. This is for one that hangs, or that
# others cannot hear: longer than a download, than the slowest process takes for its share, or than process 0 for the
# corpus and the stages between those that are shared.
TIMEOUT = datetime.timedelta(hours=12)
# By these torch and transformers tell that torchrun started a process.
VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")


@contextlib.contextmanager
def join_processes() -> Iterator[bool]:
    """Join the processes that torchrun started; true in process 0, and the others help it until it leaves."""
    distributed.init_process_group("gloo", timeout=TIMEOUT)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    try:
        if distributed.get_rank():
            # Whatever there is to say, process 0 says it.
            warnings.simplefilter("ignore")
            transformers.logging.set_verbosity_error()
            with contextlib.suppress(KeyboardInterrupt):
                _serve()
            yield False
            return
        try:
            yield True
        except (SafetyNeuronsError, SystemExit):
            release_workers()
            raise
        release_workers()
    finally:
        # After any other failure the others hear that the connection is closed.
        if distributed.is_initialized():
            distributed.destroy_process_group()


def release_workers() -> None:
    """Let the helpers go; process 0 goes on as one that was started alone."""
    if process_count() > 1:
        _tell(None)
        distributed.destroy_process_group()
        for name in VARIABLES:
            os.environ.pop(name, None)


def find_as_set(
    model: ChatModel,
    settings: Settings,
    harmful: Sequence[str],
    benign: Sequence[str],
    other: ChatModel | None = None,
    advance: Advance = ignore,
) -> NeuronSet:
    """`find` as a run's settings say, with the help of the other processes where there are any.

    `other` is the second checkpoint, for scores that compare two.
    """
    ask_workers(_help_find, settings, harmful=list(harmful), benign=list(benign))
    return find(
        model,
        harmful,
        benign,
        settings.find,
        other=other,
        seed=settings.seed,
        batch_size=settings.batch_size,
        advance=advance,
    )


def tune_as_set(
    model: ChatModel,
    neurons: NeuronSet,
    corpus: Corpus,
    settings: Settings,
    *,
    validate: Validate | None = None,
    checkpoint: Path | None = None,
    advance: Advance = ignore,
) -> NeuronDelta:
    """`tune` as a run's settings say, with the help of the other processes where there are any."""
    # What the neurons mean on prompts is nothing that tuning needs.
    ask_workers(
        _help_tune,
        settings,
        neurons=replace(neurons, directions=None),
        corpus=corpus,
        validate=None if validate is None else _elsewhere,
        checkpoint=checkpoint,
    )
    return tune(
        model,
        neurons,
        corpus,
        settings.tune,
        validate=validate,
        checkpoint=checkpoint,
        seed=settings.seed,
        advance=advance,
    )


def _elsewhere(_digest: str) -> Validation:
    raise AssertionError("Process 0 validates.")


def ask_workers(help_with: Callable[..., None], settings: Settings, **inputs: Any) -> None:
    """Tell the other processes to call `help_with(settings, **inputs)`, and wait until they have their models."""
    if process_count() > 1 and distributed.get_rank() == 0:
        _tell({"help_with": help_with, "settings": settings.model_dump(mode="json"), **inputs})
        with sync_errors():
            pass


def _serve() -> None:
    """Help process 0 whenever it asks for it, until it says stop."""
    while (request := _tell(None)) is not None:
        help_with = request.pop("help_with")
        # Process 0 hears of the failures of all, and says them.
        with contextlib.suppress(SafetyNeuronsError):
            help_with(Settings.model_validate(request.pop("settings")), **request)


def _help_find(settings: Settings, harmful: Sequence[str], benign: Sequence[str]) -> None:
    with sync_errors():
        model = load_model(settings)
        model.coverage  # noqa: B018
        other = load_other_model(settings) if scores.get(settings.find.score).compares_models else None
    find_as_set(model, settings, harmful, benign, other)


def _help_tune(
    settings: Settings, neurons: NeuronSet, corpus: Corpus, validate: Validate | None, checkpoint: Path | None
) -> None:
    with sync_errors():
        model = load_model(settings)
        model.coverage  # noqa: B018
    tune_as_set(model, neurons, corpus, settings, validate=validate, checkpoint=checkpoint)


def _tell(message: dict[str, Any] | None) -> dict[str, Any] | None:
    """Process 0's message, for all processes."""
    told = [message]
    distributed.broadcast_object_list(told, src=0)
    return told[0]
