"""How the slices are trained, and how it is measured while they are."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from safety_neurons.core.errors import SafetyNeuronsError

Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class Training:
    """How the slices are trained; `tune` says what each field means."""

    learning_rate: float = 1e-3
    batch_size: int = 8
    epochs: int = 1
    schedule: Schedule = "cosine"
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    kl: float = 0.0
    length_pool: int = 1
    accumulate: int = 1
    gradient_checkpointing: bool = False
    shard: bool = False
    validate_every: int = 25
    patience: int | None = None
    checkpoint_every: int = 25
    report_to: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "length_pool", "accumulate", "validate_every", "checkpoint_every"):
            _check(name, getattr(self, name), "a whole number from 1 on", _is_count(getattr(self, name)))
        patience = self.patience
        _check("patience", patience, "a whole number from 1 on, or None", patience is None or _is_count(patience))
        _check("seed", self.seed, "a whole number from 0 to 2^32 - 1", _is_count(self.seed + 1) and self.seed < 2**32)
        _check("learning_rate", self.learning_rate, "a number above 0", _is_number(self.learning_rate, above=0))
        _check("max_grad_norm", self.max_grad_norm, "a number above 0", _is_number(self.max_grad_norm, above=0))
        _check("kl", self.kl, "a number from 0 on", _is_number(self.kl))
        _check("warmup", self.warmup, "a share from 0 to 1", _is_number(self.warmup) and self.warmup <= 1)
        _check("schedule", self.schedule, " or ".join(get_args(Schedule)), self.schedule in get_args(Schedule))
        if self.accumulate > self.batch_size:
            raise SafetyNeuronsError(
                f"A batch of {self.batch_size} pairs cannot be split into {self.accumulate} parts. Lower accumulate, "
                "or raise batch_size."
            )
        _check_trackers(self.report_to)


@dataclass(frozen=True)
class Validation:
    """Two rates from 0 to 1, both the lower the better: of the attacks that succeed, of safe requests refused."""

    attack_success: float
    over_refusal: float

    def __post_init__(self) -> None:
        for name in ("attack_success", "over_refusal"):
            value = getattr(self, name)
            _check(name, value, "a rate from 0 to 1", _is_number(value) and value <= 1)


# Called with the slices active in the model, which is in evaluation mode, and with the digest of their values.
Validate = Callable[[str], Validation]


def _check_trackers(names: Sequence[str]) -> None:
    if not names:
        return
    # Imported late: settings are read without waiting for transformers.
    from transformers.integrations import integration_utils

    known = integration_utils.INTEGRATION_TO_CALLBACK
    unknown = [names] if isinstance(names, str) else [name for name in names if name not in known]
    if unknown:
        said = ", ".join(map(str, unknown))
        raise SafetyNeuronsError(f"report_to lists trackers ({', '.join(sorted(known))}), not {said!r}.")
    installed = integration_utils.get_available_reporting_integrations()
    if missing := [name for name in names if name not in installed]:
        raise SafetyNeuronsError(
            f"transformers does not find the tracker {missing[0]}. Install it, or leave it out of report_to."
        )
    if "tensorboard" in names and not os.environ.get("TENSORBOARD_LOGGING_DIR"):
        raise SafetyNeuronsError("Say in TENSORBOARD_LOGGING_DIR into which folder tensorboard is to write.")


def _check(name: str, value: object, allowed: str, is_allowed: bool) -> None:
    if not is_allowed:
        raise SafetyNeuronsError(f"{name} is {allowed}, not {value!r}.")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: object, above: float | None = None) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return False
    return value > above if above is not None else value >= 0
