"""The tables of benchmarks/calibration_rivals.py."""

from collections.abc import Mapping, Sequence
from typing import Any

from safety_neurons.core.tables import Table, numbers, words

_VERBS = {"conformity": "harmful answered", "rejection": "benign refused"}


def tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """One table for each side and test."""
    keys = dict.fromkeys((row["toward"], row["on"]) for row in rows)
    return [
        _table(toward, on, [row for row in rows if (row["toward"], row["on"]) == (toward, on)]) for toward, on in keys
    ]


def _table(toward: str, on: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = (
        *words("KL level", "rival", "chosen"),
        *numbers("changed", "strength", "KL here", _VERBS[toward], "minus found", "incoherent", "n"),
    )
    return Table.of(f"Toward {toward}, {on}, in percent (95% interval)", columns, map(_cells, rows))


def _cells(row: Mapping[str, Any]) -> list[str]:
    scaled = row["scaled"]
    return [
        f"{row['level']:g}" if scaled else "",
        f"{row['rival']} ({row['sets']} sets)" if row["sets"] > 1 else row["rival"],
        scaled[0]["variant"] if scaled else "",
        f"{scaled[0]['changed']:,} {scaled[0]['unit']} ({100 * scaled[0]['share']:.2g}%)" if scaled else "",
        " ".join(f"{one['strength']:.3g}{'' if one['reached'] else ' (KL not reached)'}" for one in scaled),
        f"{row['kl_divergence']:.2f}",
        _rate(row["effect"]),
        _points(row.get("minus_found")),
        _rate(row["incoherent"]),
        str(row["n"]),
    ]


def _rate(found: Mapping[str, Any]) -> str:
    if found["value"] is None or found["low"] is None:
        return "-"
    return f"{100 * found['value']:.0f} ({100 * found['low']:.0f}-{100 * found['high']:.0f})"


def _points(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return ""
    return f"{100 * found['value']:+.0f} ({100 * found['low']:+.0f} to {100 * found['high']:+.0f})"
