"""The tables of the search for tuning's settings, and of the tuned model under calibration."""

from dataclasses import dataclass
from typing import Any

from safety_neurons.report.tables import MOST_ROWS

_MOST_TRIALS = 1000


@dataclass(frozen=True)
class Tried:
    """A trial of the search: what it was tuned with, and what came of it on validation prompts."""

    number: int
    score: str
    percent: float
    learning_rate: float
    pairs: str
    kl: float
    attack_success: float
    over_refusal: float
    kl_divergence: float
    on_front: bool
    chosen: bool


def tried(results: dict[str, Any]) -> list[Tried]:
    """The trials, as many as a page can show; the chosen one is always among them."""
    section = results.get("auto") or {}
    found = [_tried(trial, section) for trial in section.get("trials") or []]
    return found[:_MOST_TRIALS] + [one for one in found[_MOST_TRIALS:] if one.chosen]


def _tried(trial: dict[str, Any], section: dict[str, Any]) -> Tried:
    settings = trial["settings"]
    return Tried(
        number=trial["number"],
        score=str(settings["find.score"]),
        percent=settings["find.percent"],
        learning_rate=settings["tune.learning_rate"],
        pairs="+".join(str(settings[f"tune.{kind}"]) for kind in ("refusals", "contrast", "benign")),
        kl=settings["tune.kl"],
        **trial["objectives"],
        on_front=trial["number"] in section["front"],
        chosen=trial["number"] == section["chosen"],
    )


def adaptive_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What calibration makes of the base and of the tuned model."""
    return list((results.get("adaptive") or {}).get("rows") or [])[:MOST_ROWS]


def tuned_with(results: dict[str, Any]) -> str:
    """The settings of the training that matter most, in a sentence; nothing where the run does not say them."""
    settings = (results["run"].get("settings") or {}).get("tune") or {}
    named = (
        ("learning_rate", "learning rate {:.2g}"),
        ("epochs", "epochs {}"),
        ("batch_size", "pairs a batch {}"),
        ("kl", "weight {:g} on staying near the base model (KL)"),
    )
    said = [form.format(settings[key]) for key, form in named if isinstance(settings.get(key), int | float)]
    return f"Settings: {', '.join(said)}." if said else ""


def pairs(results: dict[str, Any]) -> int:
    """How many pairs the model was trained on."""
    corpus = (results.get("training") or {}).get("corpus") or {}
    return sum(number for number in corpus.values() if isinstance(number, int))
