"""SafeTuning: minimise -log P(response | prompt) over the safety neurons alone (the paper, section 3.4)."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.find.neuron_set import NeuronSet
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import padding_token
from safety_neurons.progress import Advance, ignore
from safety_neurons.tune.corpus import Corpus, Pair
from safety_neurons.tune.delta import NeuronDelta, TrainingStep
from safety_neurons.tune.trainee import SliceTrainee


class _Listener(TrainerCallback):
    """Keeps the loss curve and tells that a step is done."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance
        self.steps: list[TrainingStep] = []

    def on_log(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        if "loss" in logs:
            self.steps.append(TrainingStep(state.global_step, float(state.epoch or 0), float(logs["loss"])))

    def on_step_end(self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        self.advance(1)


def training_steps(corpus: Corpus, batch_size: int, epochs: int) -> int:
    """How many optimizer steps training takes."""
    return -(-len(corpus.pairs) // batch_size) * epochs


def tune(
    model: ChatModel,
    neurons: NeuronSet,
    corpus: Corpus,
    *,
    learning_rate: float = 1e-3,
    batch_size: int = 8,
    epochs: int = 1,
    seed: int = 0,
    advance: Advance = ignore,
) -> NeuronDelta:
    """Train the neurons' slices on the corpus; the model itself is left as it was.

    Raises:
        SafetyNeuronsError: the corpus or the neuron set is empty, or the loss stops being a number.
    """
    if not corpus.pairs:
        raise SafetyNeuronsError("The corpus is empty: no refusal was kept. Raise calibrate.alpha-rejection.")
    if not len(neurons):
        raise SafetyNeuronsError("There are no neurons to tune. Raise find.percent.")
    transformers.set_seed(seed)
    trainee = SliceTrainee(model, neurons).to(model.device)
    listener = _Listener(advance)
    examples = [_encode(model, pair) for pair in corpus.pairs]
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=batch_size,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            weight_decay=0.0,
            # A whole number: a share would be rounded up, and a first step at rate 0 would teach nothing.
            warmup_steps=training_steps(corpus, batch_size, epochs) // 10,
            lr_scheduler_type="cosine",
            max_grad_norm=1.0,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
            seed=seed,
            use_cpu=model.device.type == "cpu",
        )
        if arguments.n_gpu > 1:
            # As the trainer does for models on several GPUs: copies of the slices would not find the base on theirs.
            arguments._n_gpu = 1
        trainer = Trainer(
            trainee,
            arguments,
            train_dataset=examples,
            data_collator=_Collator(padding_token(model)),
            callbacks=[listener],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        with _frozen(model):
            trainer.train()
    tensors = trainee.tensors()
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise SafetyNeuronsError("Training diverged: weights are no longer finite. Lower tune.learning-rate.")
    return NeuronDelta(neurons, tensors, tuple(listener.steps))


@contextlib.contextmanager
def _frozen(model: ChatModel) -> Iterator[None]:
    """The base without gradients while the context is open."""
    learning = [parameter for parameter in model.model.parameters() if parameter.requires_grad]
    model.model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _encode(model: ChatModel, pair: Pair) -> dict[str, list[int]]:
    """Token ids of prompt and response, and how many of them are the response (with its end-of-turn token)."""
    tokenizer = model.tokenizer
    prompt = tokenizer(model.render(pair.user, pair.prefill), add_special_tokens=False)["input_ids"]
    response = tokenizer(pair.response, add_special_tokens=False)["input_ids"]
    if not pair.cut_off:
        response = [*response, tokenizer.eos_token_id]
    return {"input_ids": [*prompt, *response], "labels": [-100] * len(prompt) + list(response)}


@dataclass(frozen=True)
class _Collator:
    """Left-padded batches; labels only for the longest response of the batch."""

    padding: int

    def __call__(self, examples: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        longest = max(len(example["input_ids"]) for example in examples)
        kept = max(sum(label != -100 for label in example["labels"]) for example in examples)
        ids, masks, labels = [], [], []
        for example in examples:
            missing = longest - len(example["input_ids"])
            ids.append([self.padding] * missing + example["input_ids"])
            masks.append([0] * missing + [1] * len(example["input_ids"]))
            labels.append(([-100] * longest + example["labels"])[-kept:])
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(masks), "labels": torch.tensor(labels)}
