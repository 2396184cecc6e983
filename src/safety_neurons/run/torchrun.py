"""A run with several processes, started by torchrun: process 0 owns it, the others help it to find the neurons."""

import contextlib
import datetime
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import distributed

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.find import scores
from safety_neurons.find.find import find
from safety_neurons.find.neuron_set import NeuronSet
from safety_neurons.find.processes import all_or_none, process_count
from safety_neurons.models.chat import ChatModel
from safety_neurons.progress import Advance, ignore
from safety_neurons.run.workplace import load_model, load_other_model
from safety_neurons.settings import Settings

# A process that dies closes its connections, and torchrun then ends the others. This is for one that hangs, or that
# others cannot hear: longer than a download, or than the slowest process takes for its share.
TIMEOUT = datetime.timedelta(hours=2)
# By these torch and transformers tell that torchrun started a process.
VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")


@contextlib.contextmanager
def together() -> Iterator[bool]:
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
            dismiss()
            raise
        dismiss()
    finally:
        # After any other failure the others hear that the connection is closed.
        if distributed.is_initialized():
            distributed.destroy_process_group()


def dismiss() -> None:
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
    if process_count() > 1 and distributed.get_rank() == 0:
        _tell({"settings": settings.model_dump(mode="json"), "harmful": list(harmful), "benign": list(benign)})
        with all_or_none():
            pass  # The others load their models.
    return find(
        model,
        harmful,
        benign,
        score=settings.find.score,
        percent=settings.find.percent,
        scope=settings.find.scope,
        selection=settings.find.selection,
        tokens=settings.find.tokens,
        last_tokens=settings.find.last_tokens,
        other=other,
        positions=settings.find.positions,
        seed=settings.seed,
        batch_size=settings.batch_size,
        advance=advance,
    )


def _serve() -> None:
    """Find whenever process 0 asks for it, until it says stop."""
    while (request := _tell(None)) is not None:
        settings = Settings.model_validate(request["settings"])
        # Process 0 hears of the failures of all, and says them.
        with contextlib.suppress(SafetyNeuronsError):
            with all_or_none():
                model = load_model(settings)
                model.coverage  # noqa: B018
                other = load_other_model(settings) if scores.get(settings.find.score).compares_models else None
            find_as_set(model, settings, request["harmful"], request["benign"], other)


def _tell(message: dict[str, Any] | None) -> dict[str, Any] | None:
    """Process 0's message, for all processes."""
    told = [message]
    distributed.broadcast_object_list(told, src=0)
    return told[0]
