"""Two evaluations on the same requests: what differs between them, by how much, and on which requests."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.fields import Section
from safety_neurons.core.files import exists, read_json
from safety_neurons.core.folders import check_entries
from safety_neurons.core.plugins import unknown_name
from safety_neurons.core.records import first_problem
from safety_neurons.core.statistics import Verdict, VerdictsById, by_request, compare_verdicts, holm
from safety_neurons.evaluation.summary import SCHEMA, counted_in


def compare(
    first: Path,
    second: Path,
    *,
    defenses: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Compare two evaluations, or two defenses of one, request by request.

    Args:
        first, second: folders of runs or evaluations.
        defenses: a defense of each. Default: every defense with itself.
        models: a model of each, if an evaluation holds several.

    Raises:
        SafetyNeuronsError: a folder holds no evaluation, a name is not in it, or the two have nothing in common.
    """
    paths = (first, second)
    read = [_read(path) for path in paths]
    sides = [
        _cells(found, path, _named(models, place), _named(defenses, place))
        for place, (path, found) in enumerate(zip(paths, read, strict=True))
    ]
    shared = [cell for cell in sides[0] if cell in sides[1]]
    if not shared:
        raise SafetyNeuronsError(
            f"{first} and {second} share no cell: name two defenses to compare different ones, or evaluate both with "
            "the same attacks, prompt sets and judges."
        )
    rows = []
    for cell in shared:
        (name, verdicts), (other, after) = sides[0][cell], sides[1][cell]
        paired = compare_verdicts(verdicts, after, counted_in(cell[2]), seed)
        if paired.first.n:
            rows.append((cell, (name, other), paired))
    if not rows:
        raise SafetyNeuronsError(
            f"{first} and {second} have no request in common on which both could be judged. Evaluate both on the "
            "same prompt sets."
        )
    return [
        {
            "attack": cell[1],
            "prompts": cell[2],
            "judge": cell[3],
            "defenses": [one, other],
            "adjusted_p": adjusted,
            **asdict(paired),
        }
        for (cell, (one, other), paired), adjusted in zip(
            rows, holm([paired.p_value for _, _, paired in rows]), strict=True
        )
    ]


class _Judged(Section):
    verdicts: list[Verdict | None]


class _Cell(Section):
    model: str
    defense: str
    attack: str
    prompts: str
    prompt_ids: list[str]
    judges: dict[str, _Judged]

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if any(len(judged.verdicts) != len(self.prompt_ids) for judged in self.judges.values()):
            raise ValueError("a judge has not one verdict for each prompt")
        return self


# What is checked to be a regular file before it is read, and the folders below it: none.
_FILES, _FOLDERS = re.compile(r"(evaluation|results)\.json"), re.compile(r"(?!)")


class _Evaluation(Section):
    """What a comparison needs of an evaluation."""

    models: Annotated[list[str], Field(min_length=1)]
    defenses: dict[str, Any]
    cells: list[_Cell]


def _read(path: Path) -> _Evaluation:
    check_entries(path, _FILES, _FOLDERS)
    for file in (path / "evaluation.json", path / "results.json"):
        if not exists(file):
            continue
        own = file.name == "results.json"
        again = f"Evaluate again: {_command(path, own)}"
        found = read_json(file, again)
        if own and isinstance(found, dict):
            found = found.get("evaluation")
            if found is None:
                continue
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise SafetyNeuronsError(f"{file} does not hold an evaluation of this version. {again}")
        try:
            return _Evaluation.model_validate(found)
        except ValidationError as error:
            raise SafetyNeuronsError(f"The evaluation in {file} is damaged: {first_problem(error)}. {again}") from error
    own = exists(path / "run.json")
    raise SafetyNeuronsError(
        f"{path} holds no evaluation, neither in evaluation.json nor in results.json. Make one, or correct the folder: "
        f"{_command(path, own)}"
    )


def _command(path: Path, own: bool) -> str:
    """What evaluates into a folder: a run's `own`, or one for whatever is evaluated."""
    folder = shlex.quote(str(path))
    return f"safety-neurons evaluate {folder}" if own else f"safety-neurons evaluate TARGETS --out {folder}"


def _named(names: Sequence[str] | None, place: int) -> str | None:
    if names is None:
        return None
    if len(names) != 2:
        raise SafetyNeuronsError("defenses and models take two names: give one of each evaluation.")
    return names[place]


CellKey = tuple[str, str, str, str]


def _cells(
    found: _Evaluation, path: Path, model: str | None, defense: str | None
) -> dict[CellKey, tuple[str, VerdictsById]]:
    """By (defense or "", attack, prompts, judge) the defense's name, and the verdicts by request."""
    known = found.models
    if model is None and len(known) > 1:
        raise SafetyNeuronsError(
            f"{path} holds several models ({', '.join(known)}): give models, one of each evaluation."
        )
    for kind, name, names in (("model", model, known), ("defense", defense, list(found.defenses))):
        if name is not None and name not in names:
            raise SafetyNeuronsError(f"In {path}: {unknown_name(kind, name, names)}")
    cells: dict[CellKey, tuple[str, VerdictsById]] = {}
    for cell in found.cells:
        if cell.model == (model or known[0]) and defense in (None, cell.defense):
            for judge, judged in cell.judges.items():
                verdicts = by_request(cell.prompt_ids, judged.verdicts)
                place = cell.defense if defense is None else ""
                cells[place, cell.attack, cell.prompts, judge] = (cell.defense, verdicts)
    return cells
