"""LoRA (Hu et al. 2021) on the matrices of the MLPs, trained like neuron deltas, to compare SafeTuning with.

The adapters are PEFT's; batches, loss, optimizer and schedule are those of `tune`.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field
from torch import nn

from safety_neurons.core.distributed import process_count
from safety_neurons.core.errors import CannotRunError, DivergedError, SafetyNeuronsError
from safety_neurons.core.files import disk_errors, exists, fingerprint, write_json
from safety_neurons.core.folders import remove_leftovers
from safety_neurons.core.progress import Advance, Listener, Silence, ignore
from safety_neurons.core.records import Record
from safety_neurons.core.tensors import StoredTensors, write_tensors
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.neurons.hook_points import DenseHookPoint, has_plain_weight
from safety_neurons.neurons.neuron_set import NeuronSet, Provenance
from safety_neurons.tuning.batches import encode_all, training_steps
from safety_neurons.tuning.checkpoint import discard
from safety_neurons.tuning.config import Training
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.delta_model import DeltaModel
from safety_neurons.tuning.neuron_deltas import DeltaTensors, digest
from safety_neurons.tuning.safetune import trained
from safety_neurons.tuning.trainer import training_fingerprint

RANK = 8
ALPHA = 16.0
# PEFT's file names, so that it can load the adapters, too.
TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_DIVERGED = "Training LoRA diverged (NaN or inf). Lower its learning_rate."


class AdapterRecord(Record):
    """What a file of adapters says of them: the name and the identity of their model, and their shape and strength."""

    model: str
    base: str
    rank: Annotated[int, Field(ge=1)]
    alpha: Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Adapter:
    """Trained adapters: float32 tensors `...lora_A.weight` [rank, inputs] and `...lora_B.weight` [outputs, rank].

    A matrix changes by `alpha / rank` times their product. `model` and `base` are the name and the identity of their
    model.
    """

    model: str
    base: str
    rank: int
    alpha: float
    tensors: DeltaTensors

    @property
    def digest(self) -> str:
        """Hash of the change."""
        return fingerprint(self.rank, self.alpha, digest(self.tensors))

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    def added(self, model: ChatModel) -> AbstractContextManager[Any]:
        """PEFT's model with the adapters, which can be disabled, while the context is open.

        Raises:
            SafetyNeuronsError: the adapters were made for other weights.
        """
        if self.base != model.identity:
            raise SafetyNeuronsError(
                f"These adapters were made for {self.model} ({self.base[:12]}), not for {model.name} "
                f"({model.identity[:12]}). Load that model, or train them again."
            )
        return adapted(model, self.rank, self.alpha, tensors=self.tensors)

    @contextlib.contextmanager
    def merged(self, model: ChatModel) -> Iterator[None]:
        """Merge the adapters into the weights while the context is open; then every byte is restored.

        Merged adapters cost no time, and hooks on neurons see the tuned ones. Packed or offloaded weights keep the
        adapters separate.
        """
        with self.added(model) as changed:
            if not all(has_plain_weight(model.model.get_submodule(name).base_layer) for name in matrices_of(model)):
                yield
                return
            weights = [model.model.get_submodule(name).base_layer.weight for name in matrices_of(model)]
            originals = [weight.detach().clone() for weight in weights]
            try:
                changed.merge_adapter()
                yield
            finally:
                with torch.no_grad():
                    for weight, original in zip(weights, originals, strict=True):
                        weight.copy_(original)

    def save(self, folder: Path, model: ChatModel) -> None:
        """Write safetensors and a JSON config, for `load` and for PEFT's `from_pretrained`."""
        described = _config(model, self.rank, self.alpha).to_dict()
        described |= {"target_modules": matrices_of(model), "base_model_name_or_path": model.name}
        write_json(folder / CONFIG, described | {"inference_mode": True})
        about = AdapterRecord(model=self.model, base=self.base, rank=self.rank, alpha=self.alpha)
        # Written last: `cached_lora` looks for this file.
        write_tensors(folder / TENSORS, "set of adapters", self.tensors, about)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            SafetyNeuronsError: the file is missing, damaged, or was not written by `save`.
        """
        advice = f"Delete the folder {folder} to train them again."
        stored = StoredTensors.read(folder / TENSORS, "set of adapters", advice)
        about = stored.about(AdapterRecord)
        shapes = {"lora_A.weight": (about.rank, None), "lora_B.weight": (None, about.rank)}
        tensors = {}
        for name in stored.tensors:
            shape = next((shape for end, shape in shapes.items() if name.endswith(f".{end}")), None)
            if shape is None:
                raise stored.problem(f"the tensor {name} is unknown")
            tensors[name] = stored.get(name, torch.float32, shape)
        return cls(about.model, about.base, about.rank, about.alpha, tensors)


def matrices_of(model: ChatModel) -> list[str]:
    """The names of all matrices of the MLPs.

    Raises:
        CannotRunError: the model has experts, whose matrices are stacked.
    """
    names: dict[str, None] = {}
    for hook_point in model.hook_points:
        if not isinstance(hook_point, DenseHookPoint):
            raise CannotRunError(f"LoRA supports dense MLPs only, and {model.name} has experts.")
        names |= dict.fromkeys([hook_point.name, *(read.name for read in hook_point.reads)])
    return list(names)


def check_peft() -> None:
    """Raise CannotRunError if PEFT is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise CannotRunError("LoRA needs PEFT, which is not installed: pip install 'safety-neurons[lora]'.")


@contextlib.contextmanager
def adapted(
    model: ChatModel, rank: int = RANK, alpha: float = ALPHA, *, seed: int = 0, tensors: DeltaTensors | None = None
) -> Iterator[Any]:
    """PEFT's model with adapters on all matrices of the MLPs, new or from `tensors`; afterwards they are removed.

    Raises:
        CannotRunError: PEFT is not installed, or the model has experts.
        SafetyNeuronsError: the rank or alpha is not above 0, or the tensors are of other matrices.
    """
    check_peft()
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    if rank < 1 or not alpha > 0:
        raise SafetyNeuronsError(f"LoRA's rank must be at least 1 and its alpha above 0, not {rank} and {alpha}.")
    config = _config(model, rank, alpha)
    learning = [parameter for parameter in model.model.parameters() if parameter.requires_grad]

    def learn() -> None:
        for parameter in learning:
            parameter.requires_grad_(True)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # This freezes the base.
        changed = get_peft_model(model.model, config)
        try:
            if tensors is not None:
                own = {name: value.shape for name, value in get_peft_model_state_dict(changed).items()}
                if own != {name: value.shape for name, value in tensors.items()}:
                    raise SafetyNeuronsError(
                        f"These adapters are not those of the MLPs of {model.name}. Train them again."
                    )
                set_peft_model_state_dict(changed, tensors)
                # `generate` is slow with a frozen head, for the reason in `models.forward`.
                learn()
            yield changed
        finally:
            changed.unload()
            learn()


def _config(model: ChatModel, rank: int, alpha: float) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=matrices_of(model))


class AdapterModel(DeltaModel):
    """The loss of `tune` with LoRA's adapters as the only parameters."""

    def __init__(self, model: ChatModel, changed: Any, kl: float) -> None:
        super().__init__(model, no_neurons(model), kl)
        self._changed = [changed]
        # PyTorch forbids dots in the names of parameters.
        self.delta = nn.ParameterDict(
            {name.replace(".", "/"): value for name, value in changed.named_parameters() if value.requires_grad}
        )
        places = getattr(model.model, "hf_device_map", {})
        if len(set(places.values())) > 1:
            # Adapters stay with their layers: the trainer does not move a module that is on several devices.
            self.hf_device_map = places

    def as_base(self) -> contextlib.AbstractContextManager[None]:
        without: contextlib.AbstractContextManager[None] = self._changed[0].disable_adapter()
        return without


def no_neurons(model: ChatModel) -> NeuronSet:
    """An empty set of the model's neurons."""
    empty = tuple(torch.zeros(0, dtype=torch.long) for _ in model.hook_points)
    made_for = Provenance(model.name, model.identity, "none", 0.0, "model", 0, (0,) * len(empty), model.parameters)
    widths = tuple(hook_point.width for hook_point in model.hook_points)
    return NeuronSet(empty, empty, widths, tuple(hook_point.layer for hook_point in model.hook_points), made_for)


def train_lora(
    model: ChatModel,
    corpus: Corpus,
    training: Training,
    *,
    rank: int = RANK,
    alpha: float = ALPHA,
    checkpoint: Path | None = None,
    advance: Advance = ignore,
) -> Adapter:
    """Train adapters on the corpus; the model itself does not change.

    Args:
        training: see `tune`.
        checkpoint: a file from which an interrupted call resumes.

    Raises:
        CannotRunError: PEFT is not installed, or the model has experts.
        SafetyNeuronsError: the corpus is empty, an option is not allowed, or training diverges.
    """
    check_peft()
    from peft import get_peft_model_state_dict

    if training.shard:
        raise SafetyNeuronsError("LoRA cannot be trained on a sharded base. Set shard=False.")
    if not corpus.pairs:
        raise SafetyNeuronsError("The corpus is empty: there is nothing to train LoRA on.")
    examples = encode_all(model, corpus)
    with adapted(model, rank, alpha, seed=training.seed) as changed:
        try:
            trained(
                AdapterModel(model, changed, training.kl),
                corpus,
                training,
                examples=examples,
                fingerprint=_fingerprint(model, corpus, training, rank, alpha),
                device=model.device,
                checkpoint=checkpoint,
                keep_passes=False,
                advance=advance,
            )
        except DivergedError as error:
            raise DivergedError(_DIVERGED) from error
        trained_tensors = get_peft_model_state_dict(changed).items()
        tensors = {name: value.detach().float().cpu().clone() for name, value in trained_tensors}
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise DivergedError(_DIVERGED)
    if checkpoint is not None:
        discard(checkpoint)
    return Adapter(model.name, model.identity, rank, alpha, tensors)


def cached_lora(
    folder: Path | None,
    model: ChatModel,
    corpus: Corpus,
    training: Training,
    *,
    rank: int = RANK,
    alpha: float = ALPHA,
    listener: Listener | None = None,
) -> Adapter:
    """The adapters of `train_lora`, cached in a folder `lora-...` of `folder`.

    Raises:
        CannotRunError: they are not cached, and there are several processes.
        SafetyNeuronsError: the cached ones are damaged, or were made for other weights.
    """
    place = folder and folder / f"lora-{_fingerprint(model, corpus, training, rank, alpha)[:16]}"
    if place and exists(place / TENSORS):
        found = Adapter.load(place)
        if (found.base, found.rank, found.alpha) != (model.identity, rank, alpha):
            raise SafetyNeuronsError(
                f"{place / TENSORS} holds adapters of {found.model} ({found.base[:12]}) with rank {found.rank} and "
                f"alpha {found.alpha:g}, not of {model.name} ({model.identity[:12]}) with rank {rank} and alpha "
                f"{alpha:g}. Delete the folder {place} to train them again."
            )
        return found
    if process_count() > 1:
        raise CannotRunError(
            "LoRA is trained by one process. Train it without torchrun first; the cached adapters are then loaded."
        )
    checkpoint = None
    if place:
        with disk_errors(place):
            place.mkdir(parents=True, exist_ok=True)
        remove_leftovers(place)
        checkpoint = place / ".checkpoint.safetensors"
    steps = training_steps(corpus, training.batch_size, training.epochs)
    with (listener or Silence()).task(f"training LoRA, rank {rank}", steps) as advance:
        adapter = train_lora(model, corpus, training, rank=rank, alpha=alpha, checkpoint=checkpoint, advance=advance)
    if place:
        adapter.save(place, model)
    return adapter


def _fingerprint(model: ChatModel, corpus: Corpus, training: Training, rank: int, alpha: float) -> str:
    """Hash of everything that determines the adapters."""
    examples = encode_all(model, corpus)
    return fingerprint(training_fingerprint(model, no_neurons(model), examples, training), rank, alpha)
