"""How far judges can be believed: how often two of them agree, what they cannot judge, and how they differ from people."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safety_neurons.report.grid_tables import HARMFUL

_MOST_JUDGES = 12


@dataclass(frozen=True)
class Agreement:
    """Two judges on the answers that both could judge. `kappa` (Cohen 1960) is None where both always say one thing."""

    first: str
    second: str
    requests: str
    n: int
    same: float | None
    kappa: float | None


@dataclass(frozen=True)
class Scored:
    """How many answers a judge was given, and how many of them it could not judge."""

    judge: str
    source: str
    answers: int
    unscored: int


@dataclass(frozen=True)
class Confusion:
    """A judge beside people: for each verdict of people, how often the judge said what."""

    judge: str
    source: str
    verdicts: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    same: float | None
    n: int


def scored(results: Mapping[str, Any]) -> list[Scored]:
    """Each judge's work over the whole grid."""
    section = results.get("evaluation") or {}
    found = []
    for judge, described in list((section.get("judges") or {}).items())[:_MOST_JUDGES]:
        given = [verdict for cell in section["cells"] for verdict in _verdicts(cell, judge) if verdict is not None]
        found.append(Scored(judge, str(described.get("source", "")), len(given), given.count("unscored")))
    return found


def agreements(results: Mapping[str, Any]) -> list[Agreement]:
    """Every pair of judges, on harmful and on safe requests; nothing where one judge was alone."""
    section = results.get("evaluation") or {}
    judges = list(section.get("judges") or {})[:_MOST_JUDGES]
    found = []
    for first, second in itertools.combinations(judges, 2):
        for requests in ("harmful", "safe"):
            both = [
                pair
                for cell in section["cells"]
                if (cell["prompts"] == HARMFUL) == (requests == "harmful")
                for pair in zip(_verdicts(cell, first), _verdicts(cell, second))
                if None not in pair and "unscored" not in pair
            ]
            if both:
                same = sum(one == other for one, other in both) / len(both)
                found.append(Agreement(first, second, requests, len(both), same, kappa(both)))
    return found


def kappa(pairs: Sequence[tuple[Any, Any]]) -> float | None:
    """Cohen's kappa: agreement beyond what two judges with these habits would reach by chance."""
    n = len(pairs)
    first, second = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    chance = sum(first[word] * second[word] for word in first) / n**2
    same = sum(one == other for one, other in pairs) / n
    return None if chance == 1 else (same - chance) / (1 - chance)


def confusions(results: Mapping[str, Any]) -> list[Confusion]:
    """The judges that were compared with people's labels."""
    errors = (results.get("evaluation") or {}).get("judge_errors") or {}
    found = []
    for judge, measured in list(errors.items())[:_MOST_JUDGES]:
        counts = measured.get("counts") or {}
        verdicts = tuple(dict.fromkeys([*counts, *(word for row in counts.values() for word in row)]))[:_MOST_JUDGES]
        rows = tuple(
            (people, tuple(row.get(word, 0) for word in verdicts)) for people, row in list(counts.items())[:_MOST_JUDGES]
        )
        n = sum(sum(row) for _, row in rows)
        same = sum(counts[word].get(word, 0) for word in counts)
        found.append(Confusion(judge, str(measured.get("source", "")), verdicts, rows, same / n if n else None, n))
    return found


def _verdicts(cell: Mapping[str, Any], judge: str) -> list[Any]:
    found = cell["judges"].get(judge)
    return [] if found is None else list(found["verdicts"])
