"""What a run found: one definition of each table, for the terminal, for Markdown and for the page; and the page."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from safety_neurons.core.tables import Table
from safety_neurons.report import (
    audit_tables,
    evaluation_tables,
    experiment_tables,
    intervention_tables,
    length_tables,
    run_tables,
    seeds_tables,
    summary,
)
from safety_neurons.report.results import RunResults

__all__ = ["PARTS", "Part", "ResultTables", "RunResults", "tables_of"]

# fmt: off
Part = Literal[
    "neurons", "words", "vocabulary", "calibration", "clouds", "training", "selection", "before_after", "dose_response",
    "search", "guard", "auto", "seeds", "left_out", "adaptive", "evaluation", "lengths", "audit",
]
# What a run's Markdown shows, in this order.
PARTS: tuple[Part, ...] = (
    "before_after", "selection", "calibration", "vocabulary", "clouds", "dose_response", "search", "guard", "auto",
    "seeds", "left_out", "adaptive", "evaluation", "lengths", "audit",
)
# fmt: on


class ResultTables(NamedTuple):
    """Tables, and what a reader must know of them."""

    tables: list[Table]
    notes: list[str]


def tables_of(results: RunResults, *parts: Part) -> ResultTables:
    """The tables of some parts of a run, of those that it has."""
    tables, notes = [], []
    for part in parts:
        made = _MAKERS[part](results)
        tables += made.tables
        notes += made.notes
    partial = summary.partial(results)
    shown = [replace(table, caption=f"{partial} {table.caption}".strip()) for table in tables if table.rows]
    return ResultTables(shown, list(dict.fromkeys(notes)))


def _of(section: Any, tables: Callable[[Any], list[Table]], notes: Callable[[Any], list[str]]) -> ResultTables:
    return ResultTables([], []) if section is None else ResultTables(tables(section), notes(section))


def _plain(maker: Callable[[RunResults], Table]) -> Callable[[RunResults], ResultTables]:
    return lambda results: ResultTables([maker(results)], [])


def search_tables(found: Any) -> list[Table]:
    """The chosen interventions and their tests."""
    tests = [
        intervention_tables.intervention_tests(one) for one in found.directions[: intervention_tables.MOST_DIRECTIONS]
    ]
    return [
        intervention_tables.chosen_interventions(found),
        intervention_tables.intervention_means(found),
        *(table for tables in tests for table in tables),
    ]


_MAKERS: Mapping[Part, Callable[[RunResults], ResultTables]] = {
    "neurons": _plain(run_tables.neurons),
    "words": _plain(run_tables.promoted),
    "vocabulary": _plain(run_tables.vocabulary),
    "calibration": _plain(run_tables.calibration),
    "clouds": _plain(run_tables.clouds),
    "training": _plain(run_tables.training),
    "selection": lambda results: ResultTables(
        [run_tables.selection(curve) for curve in run_tables.scale_curves(results)],
        [summary.selection(curve) for curve in run_tables.scale_curves(results)],
    ),
    "before_after": _plain(run_tables.before_after),
    "dose_response": lambda results: _of(
        results.dose_response, experiment_tables.dose_response, experiment_tables.dose_notes
    ),
    "search": lambda results: _of(results.search, search_tables, intervention_tables.search_notes),
    "guard": lambda results: _of(results.guard, experiment_tables.guard, experiment_tables.guard_notes),
    "auto": lambda results: _of(results.auto, experiment_tables.auto, experiment_tables.auto_notes),
    "left_out": lambda results: _of(
        results.left_out, lambda found: [experiment_tables.left_out(found)], experiment_tables.left_out_notes
    ),
    "adaptive": lambda results: _of(
        results.adaptive, lambda found: [experiment_tables.adaptive(found)], experiment_tables.adaptive_notes
    ),
    "seeds": lambda results: _of(results.seeds, seeds_tables.seeds, seeds_tables.seeds_notes),
    "evaluation": lambda results: _of(
        results.evaluation, evaluation_tables.evaluation_tables, evaluation_tables.evaluation_notes
    ),
    "audit": lambda results: _of(results.audit, audit_tables.audit_tables, audit_tables.audit_notes),
    "lengths": lambda results: _of(results.lengths, length_tables.lengths, length_tables.length_notes),
}
