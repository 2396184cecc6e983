"""The tables of the page: rates side by side, words, examples and the small print."""

from dataclasses import dataclass
from typing import Any

from safety_neurons.report import rates, text
from safety_neurons.report.rates import Arm, Rate

# A page must stay readable, and small, whatever it is given.
MOST_ROWS = 400
MOST_EXAMPLES = 40
OPEN_LAYERS = 8
OPEN_EXAMPLES = 8
_MOST_LAYERS = 300


@dataclass(frozen=True)
class Comparison:
    """What was measured, and one rate for every arm (None where it was not measured)."""

    metric: str
    prompts: str
    attack: str
    judge: str
    rates: tuple[Rate | None, ...]


def comparisons(rows: list[dict[str, Any]]) -> tuple[list[Arm], list[Comparison]]:
    """The evaluation with one line for each attack or prompt set and the arms side by side; every judge's."""
    evaluated = rates.select(rows, stage="evaluate")
    arms = rates.arms(evaluated)
    grouped: dict[tuple[str, str, str, str], dict[Arm, Rate]] = {}
    for row in evaluated:
        key = (str(row.get("metric")), str(row.get("prompts")), str(row.get("attack")), str(row.get("judge")))
        grouped.setdefault(key, {}).setdefault(rates.arm(row), rates.rate(row))
    return arms, [
        Comparison(*key, tuple(measured.get(arm) for arm in arms))
        for key, measured in list(grouped.items())[:MOST_ROWS]
    ]


@dataclass(frozen=True)
class LayerWords:
    """What one layer's neurons promote."""

    layer: int
    rejection: tuple[str, ...]
    conformity: tuple[str, ...]


def layer_words(words: list[dict[str, Any]]) -> list[LayerWords]:
    """The words of each layer, deepest first: near the output they read best."""
    sides: dict[int, dict[str, tuple[str, ...]]] = {}
    for entry in words:
        sides.setdefault(entry["layer"], {})[entry["side"]] = tuple(entry["words"][:10])
    return [
        LayerWords(layer, sides[layer].get("rejection", ()), sides[layer].get("conformity", ()))
        for layer in sorted(sides, reverse=True)[:_MOST_LAYERS]
    ]


@dataclass(frozen=True)
class Example:
    """One prompt and what was answered to it, in the order it was measured."""

    prompt: str
    prompts: str
    answers: tuple[dict[str, Any], ...]


def examples(entries: list[dict[str, Any]]) -> list[Example]:
    """The examples, with all the answers to one prompt together."""
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in entries:
        grouped.setdefault((str(entry.get("prompts")), str(entry.get("prompt"))), []).append(entry)
    return [
        Example(prompt, prompts, tuple(answers[:12]))
        for (prompts, prompt), answers in list(grouped.items())[:MOST_EXAMPLES]
    ]


def small_print(results: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titled lists of names and values: everything that someone needs to run it again."""
    run = results["run"]
    coverage = run.get("coverage") or {}
    model = dict(run.get("model") or {})
    if coverage:
        model["coverage"] = (
            f"{text.count(coverage.get('layers'))} of {text.count(coverage.get('layers_total'))} layers, "
            f"{text.count(coverage.get('neurons'))} neurons"
        )
        if coverage.get("without_mlp"):
            model["layers without an MLP"] = coverage["without_mlp"]
        for number, message in enumerate(coverage.get("unread") or [], 1):
            model[f"not read {number}"] = message
    neurons = results.get("neurons") or {}
    stages = {
        name: f"{text.duration(stage.get('seconds'))}, finished {text.date(stage.get('finished'))}"
        for name, stage in (run.get("stages") or {}).items()
    }
    return [
        (title, content[:MOST_ROWS])
        for title, content in (
            ("Model", _flat(model)),
            ("Neurons", _flat({key: value for key, value in neurons.items() if key != "per_layer"})),
            ("Prompts", _flat(run.get("prompts") or {})),
            ("Settings", _flat({"seed": run.get("seed")} | (run.get("settings") or {}))),
            ("Stages", _flat(stages)),
            ("Versions", _flat(run.get("versions") or {})),
        )
        if content
    ]


def _flat(value: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names."""
    flat: list[tuple[str, str]] = []
    for name, content in value.items():
        if isinstance(content, dict) and content:
            flat += _flat(content, f"{above}{name}.")
        else:
            flat.append((f"{above}{name}", _plain(content)))
    return flat


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "not set"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_plain, value[:50])) or "none"
    return str(value)
