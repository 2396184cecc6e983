"""The grid of attacks and defenses as the page shows it: a heat map for each model and judge, and what is behind it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safety_neurons.report import rates, text
from safety_neurons.report.rates import Rate

HARMFUL = "harmful"
# As in the tables of `evaluate`: a difference from the undefended model this unlikely by chance is marked.
SIGNIFICANT = 0.05
OPEN_GRIDS = 2
_MOST_GRIDS = 40
_MOST_LINES = 60
_MOST_VERDICTS = 400_000
_NOT_JUDGED = "not asked"


@dataclass(frozen=True)
class GridCell:
    """One rate of the heat map. `number` finds what is behind it in `behind`; None where there is nothing."""

    number: int | None
    rate: Rate | None
    marked: bool
    reason: str


@dataclass(frozen=True)
class GridRow:
    """One defense: its standing, and a cell for each attack and each safe set (None where it was not planned)."""

    defense: str
    mean: Rate | None
    corrected: Rate | None
    change: Mapping[str, Any] | None
    attacks: tuple[GridCell | None, ...]
    safe: tuple[GridCell | None, ...]
    cost: Mapping[str, Any] | None


@dataclass(frozen=True)
class Grid:
    """One model by one judge: defenses down, attacks and safe sets across."""

    model: str
    judge: str
    attacks: tuple[str, ...]
    safe: tuple[str, ...]
    rows: tuple[GridRow, ...]
    reasons: tuple[tuple[str, str], ...]

    @property
    def corrected(self) -> bool:
        return any(row.corrected for row in self.rows)

    @property
    def costs(self) -> bool:
        return any(row.cost for row in self.rows)


def grids(results: Mapping[str, Any]) -> tuple[list[Grid], dict[str, Any]]:
    """The heat maps, and what is behind their cells as JSON: ids of requests, verdicts, and lines to read."""
    section = results.get("evaluation") or {}
    behind = _Behind()
    pairs = [(model, judge) for model in section.get("models") or [] for judge in section.get("judges") or []]
    return [_grid(section, str(model), str(judge), behind) for model, judge in pairs[:_MOST_GRIDS]], behind.json()


def _grid(section: Mapping[str, Any], model: str, judge: str, behind: "_Behind") -> Grid:
    cells = [cell for cell in section["cells"] if cell["model"] == model]
    attacks = _names(cell["attack"] for cell in cells if cell["prompts"] == HARMFUL)
    safe = _names(cell["prompts"] for cell in cells if cell["prompts"] != HARMFUL)
    defenses = _names(cell["defense"] for cell in cells)
    found = {
        (cell["defense"], cell["attack"] if cell["prompts"] == HARMFUL else "", cell["prompts"]): cell for cell in cells
    }
    summarize = {row["defense"]: row for row in section["summary"] if (row["model"], row["judge"]) == (model, judge)}
    costs = {row["defense"]: row for row in section.get("overhead") or [] if row["model"] == model}

    def shown(defense: str, attack: str, prompts: str) -> GridCell | None:
        cell = found.get((defense, attack, prompts))
        return None if cell is None else _cell(cell, judge, behind)

    rows = []
    for defense in defenses:
        standing = summarize.get(defense, {})
        rows.append(
            GridRow(
                defense,
                _rate(standing.get("attack_success")),
                _rate(standing.get("corrected")),
                standing.get("against_none"),
                tuple(shown(defense, attack, HARMFUL) for attack in attacks),
                tuple(shown(defense, "", name) for name in safe),
                costs.get(defense),
            )
        )
    reasons = dict.fromkeys((str(cell["defense"]), str(cell["reason"])) for cell in cells if cell["reason"])
    return Grid(model, judge, tuple(attacks), tuple(safe), tuple(rows), tuple(reasons)[:_MOST_LINES])


def _names(found: Any) -> list[str]:
    return list(dict.fromkeys(found))[:_MOST_LINES]


def _rate(found: Mapping[str, Any] | None) -> Rate | None:
    return rates.rate(dict(found)) if found else None


def _cell(cell: Mapping[str, Any], judge: str, behind: "_Behind") -> GridCell:
    judged = cell["judges"].get(judge)
    if judged is None:
        return GridCell(None, None, False, str(cell["reason"] or "not judged"))
    against = judged.get("against_none")
    marked = bool(against and against["p"] is not None and against["p"] < SIGNIFICANT)
    return GridCell(behind.add(cell, judge, judged), rates.rate(judged), marked, "")


class _Behind:
    """Gathers what the page's script shows of a cell; lists of ids that cells share are kept once."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, ...], int] = {}
        self._words: dict[str, int] = {}
        self._cells: list[dict[str, Any]] = []
        self._left = _MOST_VERDICTS

    def add(self, cell: Mapping[str, Any], judge: str, judged: Mapping[str, Any]) -> int:
        verdicts = [_NOT_JUDGED if verdict is None else text.visible(verdict, 40) for verdict in judged["verdicts"]]
        self._left -= len(verdicts)
        entry: dict[str, Any] = {"title": _title(cell, judge), "lines": _lines(cell, judged, verdicts)}
        if self._left >= 0:
            ids = tuple(text.visible(one, 80) for one in cell["prompt_ids"])
            entry["ids"] = self._ids.setdefault(ids, len(self._ids))
            entry["verdicts"] = [self._words.setdefault(verdict, len(self._words)) for verdict in verdicts]
        self._cells.append(entry)
        return len(self._cells) - 1

    def json(self) -> dict[str, Any]:
        return {"ids": list(map(list, self._ids)), "words": list(self._words), "cells": self._cells}


def _title(cell: Mapping[str, Any], judge: str) -> str:
    attack = cell["attack"] if cell["prompts"] == HARMFUL else f"{cell['prompts']} requests"
    parts = (attack, f"against {cell['defense']}", cell["model"], f"judge {judge}")
    return ", ".join(text.visible(part, 80) for part in parts)


def _lines(cell: Mapping[str, Any], judged: Mapping[str, Any], verdicts: list[str]) -> list[str]:
    """What is said of a cell besides its single verdicts."""
    counts = ", ".join(f"{verdicts.count(word):,} {word}" for word in dict.fromkeys(verdicts))
    what = "Attack success" if cell["prompts"] == HARMFUL else "Refused"
    lines = [
        f"{len(verdicts):,} requests: {counts}.",
        f"{what}: {text.percent(judged['value'])} ({text.interval(judged['low'], judged['high'])}) of the "
        f"{judged['n']:,} answers that could be judged.",
    ]
    against = judged.get("against_none")
    if against and against.get("p") is not None:
        lines.append(
            f"Against the undefended model on the same {against['n']:,} requests: {points(against)} points, "
            f"p = {against['p']:.2g} (McNemar's exact test)."
        )
    kinds = (("blocked", "without asking the model"), ("cut_off", "cut off at the limit of tokens"))
    lines += [f"{cell[kind]:,} answered {said}." for kind, said in kinds if cell.get(kind)]
    return lines


def points(change: Mapping[str, Any] | None) -> str:
    """A difference of two shares in points, with its interval."""
    if not change or change.get("value") is None:
        return text.percent(None)
    value, low, high = (signed(change.get(key)) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def signed(value: float | None) -> str:
    """A difference of shares in points with a proper minus sign."""
    return text.percent(None) if value is None else f"{100 * value:+.0f}".replace("-", "\N{MINUS SIGN}")
