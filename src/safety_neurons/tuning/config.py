"""How the tuning corpus is made, how the neuron deltas are trained, and how pass and scale are selected."""

import os
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from safety_neurons.core.config import Config

# What each is: the files of tuning/disguise_texts/.
DisguiseKind = Literal["rules", "persona", "suffix", "story", "turns", "format", "opening", "purpose"]
DISGUISE_KINDS: tuple[DisguiseKind, ...] = get_args(DisguiseKind)


class CorpusConfig(Config):
    """What the tuning corpus is made of.

    Requests that have a counterpart in the other set are preferred: a harmful and a benign one whose ids end with the
    same number, and so a contrast and a borderline one.
    """

    corpus: Path | None = None
    """A .jsonl file of pairs (kind, user, response ...) to train on. Default: pairs that the model makes itself."""
    refusals: int = Field(340, ge=1)
    """Number of harmful training prompts to make refusals for."""
    contrast: int = Field(170, ge=0)
    """Number of unsafe prompts that resemble borderline ones to make refusals for."""
    benign: int = Field(340, ge=0)
    """Number of benign training prompts that the base model answers."""
    borderline: int = Field(340, ge=0)
    """Number of borderline training prompts to answer; those that the base model refuses are answered calibrated toward
    conformity."""
    samples: int = Field(2, ge=1)
    """Maximum number of sampled answers per harmful prompt: another one if the last is not a refusal, or repeats one
    that is over-represented."""
    temperature: float = Field(1.4, ge=0.01)
    """Sampling temperature of these answers. A cooler model repeats one refusal."""
    largest_share: float = Field(0.1, gt=0, le=1)
    """Maximum fraction of refusals that may share a sentence."""
    variants: int = Field(1, ge=0)
    """Number of disguises to train on for each harmful and benign request, besides the request as it is. A disguise is
    a text such as an attacker writes around a request. Contrast and borderline requests are never disguised."""
    disguises: tuple[DisguiseKind, ...] = Field(DISGUISE_KINDS, min_length=1)
    """Kinds of disguises to train on, also for the guard: rules, persona, suffix, story, turns, format, opening,
    purpose."""
    answer_tokens: int = Field(24, ge=1)
    """Maximum length of a corpus answer, in tokens. Refusal is decided at the start; long answers dilute it."""


class TuningConfig(Config):
    """How the neuron deltas are trained."""

    learning_rate: float = Field(5e-4, gt=0)
    """Peak learning rate of AdamW. Raise it for fewer neurons (1e-3 for 0.5% of them, 2e-3 for 0.1%)."""
    epochs: int = Field(1, ge=1)
    """Passes over the corpus. Raise it for a small corpus."""
    batch_size: int = Field(8, ge=1)
    """Pairs per optimizer step, over all processes; the loss is the mean over the tokens of their completions."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after warm-up: cosine or linear decay to 0, or constant."""
    warmup: float = Field(0.1, ge=0, le=1)
    """Fraction of the steps spent on warm-up."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Maximum norm of the gradient; longer ones are scaled down."""
    kl: float = Field(2.0, ge=0)
    """Weight of the KL penalty to the base model on benign answers. Borderline answers are exempt: the base model
    refuses some of those requests."""
    length_pool: int = Field(1, ge=1)
    """Batches hold pairs of similar length, from random pools of N batches. 1: random batches, which train slower and
    better: refusals are short, and batches of refusals alone teach worse."""
    accumulate: int = Field(1, ge=1)
    """Number of parts to split a batch into, computed one after the other to save memory."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    shard: bool = False
    """Shard the frozen base model over the processes of torchrun while training."""
    checkpoint_every: int = Field(25, ge=1)
    """Optimizer steps between checkpoints; interrupted training resumes from the last one."""
    report_to: tuple[str, ...] = ()
    """Experiment trackers to log to, by transformers' names: wandb, mlflow, tensorboard ... A permission for one call:
    no run keeps it."""

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"A batch of {self.batch_size} pairs cannot be split into {self.accumulate} parts. Lower accumulate, "
                "or raise batch_size"
            )
        return self

    @field_validator("report_to")
    @classmethod
    def _check_trackers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            return names
        # Imported late: settings are read without waiting for transformers.
        from transformers.integrations import integration_utils

        known = integration_utils.INTEGRATION_TO_CALLBACK
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"report_to lists trackers ({', '.join(sorted(known))}), not {', '.join(unknown)!r}")
        installed = integration_utils.get_available_reporting_integrations()
        if missing := [name for name in names if name not in installed]:
            raise ValueError(
                f"transformers does not find the tracker {missing[0]}. Install it, or remove it from report_to"
            )
        if "tensorboard" in names and not os.environ.get("TENSORBOARD_LOGGING_DIR"):
            raise ValueError("Set TENSORBOARD_LOGGING_DIR to the folder that tensorboard writes to")
        return names


class Training(TuningConfig):
    """One training: its options, and the seed that fixes its batches."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the batches."""

    @classmethod
    def of(cls, config: TuningConfig, seed: int) -> Self:
        """The training that a config describes, which may have further fields."""
        return cls.checked({name: getattr(config, name) for name in TuningConfig.model_fields} | {"seed": seed})


class SelectionConfig(Config):
    """How the pass over the corpus and the scale of the delta are selected, on validation prompts."""

    select: bool = True
    """Select the pass over the corpus and the scale of the delta on validation prompts. Off: the last pass as
    trained."""
    max_over_refusal: float = Field(0.02, ge=0, le=1)
    """Maximum increase in the share of a safe prompt set that is refused. Among the passes and scales within it,
    the one with the least attack success is selected."""
    validation_prompts: int = Field(100, ge=1)
    """Maximum number of validation prompts per set. Harmful and benign ones are asked twice: plain and in
    disguises that training does not use."""


class TuneConfig(TuningConfig, SelectionConfig, CorpusConfig):
    """SafeTuning: the neurons, the corpus, the training, and the selection of pass and scale."""

    percent: float | None = Field(None, gt=0, le=100)
    """Budget of the neurons to tune, in percent: the best by the run's score. Default: the found neurons."""
