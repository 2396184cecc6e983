"""The tables of the dose-response, the search for the smallest push, and the guard."""

from dataclasses import dataclass
from typing import Any

from safety_neurons.report.tables import MOST_ROWS

SIDES = ("harmful", "benign")
# Of a trial of the search: its settings, its push and what it did.
Trial = dict[str, Any]
_MOST_TRIALS = 1000
_MOST_DIRECTIONS = 6
_MOST_TESTS = 12


@dataclass(frozen=True)
class Dose:
    """One push at one alpha, and the row of what it did.

    `used` is the alpha of these neurons where it is another one, for the same dose.
    """

    alpha: str
    used: float | None
    row: dict[str, Any]


def dose_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the dose-response, as many as a page can show."""
    return list((results.get("dose_response") or {}).get("rows") or [])[: 2 * MOST_ROWS]


def doses(results: dict[str, Any]) -> list[tuple[str, list[Dose]]]:
    """The dose-response of harmful, then of benign prompts."""
    found = []
    for side in SIDES:
        rows = [row for row in dose_rows(results) if row["prompts"] == side]
        if rows:
            found.append((side, [Dose(alpha(row["alpha"]), used_alpha(row), row) for row in rows]))
    return found


def used_alpha(row: dict[str, Any]) -> float | None:
    """The alpha of a row's own neurons where it is not the row's."""
    used = float(row["alpha_used"])
    return None if abs(used - abs(row["alpha"])) < 1e-6 else used


def pushed_subjects(rows: list[dict[str, Any]]) -> list[str]:
    """Whose neurons were pushed, in the order of the rows."""
    return [name for name in dict.fromkeys(str(row["subject"]) for row in rows) if name != "base"]


def subject(name: str) -> str:
    """Whose neurons, in a legend."""
    return {"random": "random, same alpha"}.get(name, name)


def alpha(value: float) -> str:
    """With its sign, which is the direction; 0 has none."""
    return f"{value:+g}".replace("-", "\N{MINUS SIGN}") if value else "0"


@dataclass(frozen=True)
class Direction:
    """One direction of the search: toward what, on which prompts, and what they should get."""

    toward: str
    moving: str
    verb: str
    kept: bool
    reached: bool


def searched(results: dict[str, Any]) -> dict[str, Any]:
    """The section of the search; empty where there was none."""
    return results.get("search") or {}


def directions(results: dict[str, Any]) -> list[tuple[Direction, dict[str, Any]]]:
    """The directions, each with its section of the results, cut to what a page can show."""
    section = searched(results)
    found = []
    for one in (section.get("directions") or [])[:_MOST_DIRECTIONS]:
        verb, moving = ("answered", "harmful") if one["toward"] == "conformity" else ("refused", "benign")
        direction = Direction(
            str(one["toward"]),
            str(one["tests"][0]["moving"]) if one["tests"] else moving,
            verb,
            keeps(one["chosen"], section["limits"]),
            one["chosen"]["moved"] >= section["limits"]["target"],
        )
        found.append((direction, one | {"trials": one["trials"][:_MOST_TRIALS], "tests": one["tests"][:_MOST_TESTS]}))
    return found


def keeps(trial: Trial, limits: dict[str, float]) -> bool:
    """It breaks and moves no more than the search allowed; what could not be measured, or has no limit, is allowed."""
    return all(
        trial[name] is None or limits[limit] is None or trial[name] <= limits[limit]
        for name, limit in (("broken", "broken"), ("side_kl_divergence", "kl_divergence"))
    )


def detector_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every detector on every test, as many as a page can show."""
    return list((results.get("guard") or {}).get("detectors") or [])[:MOST_ROWS]


@dataclass(frozen=True)
class DetectorTest:
    """One test of detectors: its name, how many prompts of either side it has, and the detectors' rows."""

    name: str
    harmful: int
    benign: int
    rows: tuple[dict[str, Any], ...]


def detector_tests(results: dict[str, Any]) -> list[DetectorTest]:
    """The detectors, grouped by test."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in detector_rows(results):
        grouped.setdefault(str(row["on"]), []).append(row)
    return [DetectorTest(name, rows[0]["harmful"], rows[0]["benign"], tuple(rows)) for name, rows in grouped.items()]
