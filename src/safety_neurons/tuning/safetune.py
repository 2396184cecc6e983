"""SafeTuning: minimize -log P(response | prompt) over the safety neurons alone (the paper, section 3.4)."""

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import distributed
from transformers import TrainingArguments

from safety_neurons.core.distributed import owns, process_count
from safety_neurons.core.errors import DivergedError, NotFiniteError, SafetyNeuronsError
from safety_neurons.core.files import fingerprint
from safety_neurons.core.folders import scratch_folder
from safety_neurons.core.progress import Advance, ignore
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.packing import can_pack
from safety_neurons.models.tokens import padding_token
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.tuning.batches import (
    IGNORED,
    TokenizedPair,
    batches,
    encode_all,
    micro_batches,
    steps_per_epoch,
    training_steps,
)
from safety_neurons.tuning.checkpoint import CheckpointPlan, discard, resumable
from safety_neurons.tuning.config import Training, TuningConfig
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.delta import NeuronDelta
from safety_neurons.tuning.delta_model import DeltaModel, frozen, recomputed_layers
from safety_neurons.tuning.shard import shard_device, sharded
from safety_neurons.tuning.trainer import DIVERGED, DeltaTrainer, training_fingerprint


def tune(
    model: ChatModel,
    neurons: NeuronSet,
    corpus: Corpus,
    config: TuningConfig = TuningConfig(),
    *,
    checkpoint: Path | None = None,
    keep_checkpoint: bool = False,
    keep_passes: bool = True,
    seed: int = 0,
    advance: Advance = ignore,
    **options: Any,
) -> NeuronDelta:
    """Train the neurons' deltas on the corpus; the model itself is left as it was.

    Returns the delta after the last pass over the corpus. `NeuronDelta.after` gives those after earlier passes, if they
    are kept.

    Where several processes were started (torchrun, with a process group of torch.distributed), all call this with the
    same arguments and share the work: the batches are the same, and so is the result within the rounding of sums.

    Args:
        config: how to train.
        checkpoint: a file from which an interrupted call resumes, to the same bytes. Process 0 writes it, and removes
            it after training.
        keep_checkpoint: leave the file after training. The same call then returns the same delta without training.
        keep_passes: keep the deltas after earlier passes, also in the checkpoint: each is as large as the result.
        seed: fixes the batches.
        options: fields of `TuningConfig` that replace those of `config`.

    Raises:
        SafetyNeuronsError: the corpus or the neuron set is empty, an option is not allowed, training diverges, or the
            checkpoint is damaged.
    """
    training = Training.of(config.override(options), seed)
    if not corpus.pairs:
        raise SafetyNeuronsError(
            "The corpus is empty: no refusal was kept. Raise calibrate.alpha_rejection, tune.refusals or tune.samples."
        )
    if not len(neurons):
        raise SafetyNeuronsError("There are no neurons to tune. Raise find.percent.")
    examples = encode_all(model, corpus)
    device = shard_device() if training.shard else model.device
    with frozen(model):
        trainer = trained(
            DeltaModel(model, neurons, training.kl).to(device),
            corpus,
            training,
            examples=examples,
            # Without the passes, the checkpoint of one cannot be resumed by the other.
            fingerprint=fingerprint(training_fingerprint(model, neurons, examples, training), keep_passes),
            device=device,
            checkpoint=checkpoint,
            keep_passes=keep_passes,
            advance=advance,
        )
    last = trainer.delta_model.tensors()
    if not all(torch.isfinite(tensor).all() for tensor in last.values()):
        raise DivergedError(DIVERGED)
    if checkpoint is not None and not keep_checkpoint and owns(0):
        discard(checkpoint)
    return NeuronDelta(neurons, last, training.epochs, steps=trainer.steps(), earlier=tuple(trainer.passes))


def trained(
    delta_model: DeltaModel,
    corpus: Corpus,
    training: Training,
    *,
    examples: list[TokenizedPair],
    fingerprint: str,
    device: torch.device,
    checkpoint: Path | None,
    keep_passes: bool,
    advance: Advance,
) -> DeltaTrainer:
    """Train the parameters of a `DeltaModel` over its frozen base; see `tune`.

    Training resumes from a checkpoint with the same `fingerprint`. With a checkpoint, the last step writes one, too.
    """
    model = delta_model.base
    steps = training_steps(corpus, training.batch_size, training.epochs)
    plan = CheckpointPlan(
        dict(delta_model.delta.items()), steps, steps_per_epoch(corpus, training.batch_size), keep_passes
    )
    resumed = resumable(checkpoint, fingerprint, plan)
    transformers.set_seed(training.seed)
    is_finished = resumed is not None and resumed.is_finished
    # Tried now: processes that share the base must run it equally often.
    can_pack(model.model, 0)
    if not is_finished:
        with delta_model.as_base():
            delta_model.read_base(examples, padding_token(model), training.batch_size)
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder())
        if resumed is not None:
            # The trainer reads this part itself, from a folder.
            (scratch / "trainer_state.json").write_text(json.dumps(resumed.state.trainer.whole()), encoding="utf-8")
        trainer = DeltaTrainer(
            delta_model,
            _arguments(training, scratch, steps, device),
            training,
            shares=_shares(examples, training),
            plan=plan,
            padding=padding_token(model),
            fingerprint=fingerprint,
            checkpoint=checkpoint,
            resumed=resumed,
            advance=advance,
        )
        if is_finished:
            trainer.restore()
            advance(steps)
            return trainer
        trainer.remove_callback(transformers.PrinterCallback)
        if training.gradient_checkpointing:
            stack.enter_context(recomputed_layers(model, delta_model))
        if training.shard:
            stack.enter_context(sharded(model))
        try:
            trainer.train(resume_from_checkpoint=None if resumed is None else str(scratch))
        except NotFiniteError as error:
            # The base was finite when it was read, above.
            raise DivergedError(DIVERGED) from error
    return trainer


def _shares(examples: list[TokenizedPair], training: Training) -> list[list[TokenizedPair]]:
    """The micro batches of this process, `accumulate` of them for every optimizer step."""
    mine = distributed.get_rank() if process_count() > 1 else 0
    shares = []
    for batch in batches(examples, training):
        parts = micro_batches(batch, process_count() * training.accumulate)
        for part in parts[mine * training.accumulate : (mine + 1) * training.accumulate]:
            # A process without a pair computes one without labels: the others wait for its gradients.
            first = examples[batch[0]]
            nothing = first._replace(labels=[IGNORED] * len(first.labels), keep=False, number=-1)
            shares.append([examples[index] for index in part] or [nothing])
    return shares


def _arguments(training: Training, scratch: Path, steps: int, device: torch.device) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=-(-training.batch_size // (process_count() * training.accumulate)),
        gradient_accumulation_steps=training.accumulate,
        num_train_epochs=1,
        learning_rate=training.learning_rate,
        weight_decay=0.0,
        # A number of steps: a share would be rounded up, and a first step at rate 0 would learn nothing.
        warmup_steps=int(steps * training.warmup),
        lr_scheduler_type="constant_with_warmup" if training.schedule == "constant" else training.schedule,
        max_grad_norm=training.max_grad_norm,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=list(training.report_to) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        seed=training.seed,
        use_cpu=device.type == "cpu",
        # All deltas have a gradient in every process.
        ddp_find_unused_parameters=False,
        log_level_replica="passive",
    )
    if arguments.world_size != process_count():
        raise SafetyNeuronsError(
            f"torchrun started {arguments.world_size} processes, but {process_count()} are in the process group. Call "
            "torch.distributed.init_process_group before tune, or start one process."
        )
    if arguments.n_gpu > 1:
        # As the trainer does for models on several GPUs: copies of the deltas would not have the base on their GPU.
        arguments._n_gpu = 1
    return arguments
