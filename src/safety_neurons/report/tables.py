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
    """What one layer's neurons promote and suppress on either side, and their share of what its MLPs write."""

    layer: int
    share: float | None
    rejection: tuple[str, ...]
    conformity: tuple[str, ...]
    rejection_suppressed: tuple[str, ...]
    conformity_suppressed: tuple[str, ...]


def layer_words(results: dict[str, Any]) -> list[LayerWords]:
    """The words of each layer, deepest first: near the output they read best."""
    shares = {
        entry["layer"]: entry["projection"]
        for entry in results.get("write_share") or []
        if entry["weighting"] == weighting(results)
    }
    sides: dict[int, dict[str, dict[str, Any]]] = {}
    for entry in results.get("words") or []:
        sides.setdefault(entry["layer"], {})[entry["side"]] = entry

    def words(layer: int, side: str, kind: str, most: int) -> tuple[str, ...]:
        return tuple(sides[layer].get(side, {}).get(kind, ())[:most])

    return [
        LayerWords(
            layer,
            shares.get(layer),
            words(layer, "rejection", "words", 10),
            words(layer, "conformity", "words", 10),
            words(layer, "rejection", "suppressed", 5),
            words(layer, "conformity", "suppressed", 5),
        )
        for layer in sorted(sides, reverse=True)[:_MOST_LAYERS]
    ]


def weighting(results: dict[str, Any]) -> str:
    """How write vectors were weighted where the settings had a choice."""
    explain = (results["run"].get("settings") or {}).get("explain") or {}
    return str(explain.get("weighting", "difference"))


@dataclass(frozen=True)
class VocabularySide:
    """One side's vocabulary test with its own lexicon: its mean over the layers, and its layers."""

    side: str
    lexicon: str
    first_readable: int | None
    overall: dict[str, Any]
    scores: tuple[dict[str, Any], ...]
    lens: dict[int, float]


def vocabulary_sides(results: dict[str, Any]) -> list[VocabularySide]:
    """The sides that were tested, in the run's weighting."""
    vocabulary = results.get("vocabulary") or {}
    found = []
    for side, lexicon in (("rejection", "refusal"), ("conformity", "compliance")):
        wanted = {"weighting": weighting(results), "side": side, "lexicon": lexicon}
        overall, scores, lens = (
            [entry for entry in vocabulary.get(part) or [] if wanted.items() <= entry.items()]
            for part in ("overall", "scores", "lens")
        )
        first = [
            entry["layer"]
            for entry in vocabulary.get("first_readable") or []
            if (entry["side"], entry["weighting"]) == (side, wanted["weighting"])
        ]
        if overall:
            found.append(
                VocabularySide(
                    side,
                    lexicon,
                    first[0] if first else None,
                    overall[0],
                    tuple(scores[:_MOST_LAYERS]),
                    {entry["layer"]: entry["auroc"] for entry in lens[:_MOST_LAYERS]},
                )
            )
    return found


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
            ("Command", _flat({key: run[key] for key in ("command", "started") if run.get(key)})),
            ("Neurons", _flat({key: value for key, value in neurons.items() if key not in ("per_layer", "indices")})),
            ("Prompts", _flat(run.get("prompts") or {})),
            ("Settings", _flat({"seed": run.get("seed")} | (run.get("settings") or {}))),
            *((title, _flat(_settings(results.get(key) or {}))) for title, key in _TESTS),
            ("Attack by defense", _flat(_settings(results.get("evaluation") or {}))),
            ("Stages", _flat(stages)),
            ("Versions", _flat(run.get("versions") or {})),
        )
        if content
    ]


def described(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What a run was made with, as dotted names and values."""
    run = results["run"]
    parts = {"model": run.get("model"), "seed": run.get("seed"), "prompts": run.get("prompts")}
    return _flat(parts | {"versions": run.get("versions")} | (run.get("settings") or {}))


# What a test found, which is shown elsewhere.
_FOUND = ("rows", "directions", "detectors", "cells", "summary", "overhead", "judge_errors")
# Tests of a run besides its stages: their title and their section of the results.
_TESTS = (("Dose-response", "dose_response"), ("Search", "search"), ("Guard", "guard"))


def _settings(section: dict[str, Any]) -> dict[str, Any]:
    """What was set for a test, without what it found."""
    return {key: value for key, value in section.items() if key not in _FOUND}


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
