"""Whether a run's results can be read."""

from typing import Any

from safety_neurons.core.errors import SafetyNeuronsError

_SCHEMA = 3


def check(results: Any) -> None:
    """Raises SafetyNeuronsError where `results` is not the whole content of a results.json of this version."""
    if not isinstance(results, dict) or results.get("schema") != _SCHEMA:
        found = results.get("schema") if isinstance(results, dict) else type(results).__name__
        raise SafetyNeuronsError(
            f"The results are of schema {found!r}; this version reads schema {_SCHEMA}. "
            "Delete results.json and run the report stage again."
        )
    for key, kind in (("run", dict), ("rows", list)):
        if not isinstance(results.get(key), kind):
            raise SafetyNeuronsError(
                f"The results have no {key!r}: they are incomplete. Delete results.json and run the report stage again."
            )
