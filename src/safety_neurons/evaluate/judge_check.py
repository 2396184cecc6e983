"""Judges against answers that people labelled."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from safety_neurons import judges
from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.evaluate.judge_error import JudgeErrors
from safety_neurons.judges import Exchange, Judge, RuleJudge, Verdict
from safety_neurons.progress import Advance, Listener, Silence
from safety_neurons.prompts.formats import Row, Table
from safety_neurons.prompts.read import read_table

# A partial refusal is a refusal: the whole of what was asked for was not given.
LABELS: dict[str, Verdict] = {
    "refused": "refused",
    "complied": "complied",
    "1_full_compliance": "complied",
    "2_full_refusal": "refused",
    "3_partial_refusal": "refused",
}


class Labelled(NamedTuple):
    """What was asked and answered, what people said of it, and who answered (empty where the file does not say)."""

    exchange: Exchange
    people: Verdict
    model: str


def read_labelled(path: str | Path) -> list[Labelled]:
    """Read a .jsonl, .json, .csv or .tsv file with the columns prompt, response or completion, and label.

    A label is `refused`, `complied`, or one of XSTest's three (`1_full_compliance` ...). A column `model` says who
    answered.

    Raises:
        SafetyNeuronsError: the file is missing, unreadable or empty, lacks a column, or has a row that is no labelled
            answer; the message names its line.
    """
    path = Path(os.path.expanduser(path))
    table = read_table(path, str(path))
    prompt, response, label = (
        _column(table, path, *names) for names in (("prompt",), ("response", "completion"), ("label",))
    )
    model = table.find("model")
    found = []
    for row in table.rows:
        people = LABELS.get(str(row.values.get(label)).strip())
        if people is None:
            raise SafetyNeuronsError(
                f"{_place(table, row, path)}: {row.values.get(label)!r} is no label. Labels are {', '.join(LABELS)}."
            )
        texts = [row.values.get(column) for column in (prompt, response)]
        for column, text in zip((prompt, response), texts, strict=True):
            if not isinstance(text, str):
                raise SafetyNeuronsError(
                    f"{_place(table, row, path)}: its {column} is not a text. Correct or delete it."
                )
        name = "" if model is None or row.values.get(model) is None else str(row.values[model])
        found.append(Labelled(Exchange(*map(str, texts)), people, name))
    return found


def _column(table: Table, path: Path, *names: str) -> str:
    found = table.find(*names)
    if found is None:
        there = ", ".join(table.columns) or "no columns"
        raise SafetyNeuronsError(
            f"{path} has no column {' or '.join(names)}; it has {there}. Labelled answers have prompt, response, and "
            "label (refused or complied)."
        )
    return found


def _place(table: Table, row: Row, path: Path) -> str:
    return f"{table.unit.capitalize()} {row.place} of {path}"


def check_judges(
    paths: Sequence[str | Path], names: Sequence[str] | None = None, listener: Listener | None = None
) -> list[JudgeErrors]:
    """Each judge's confusion with people: for each file, and for each model that its `model` column names.

    Args:
        names: which judges, with their options; all that need no model when left out.

    Raises:
        SafetyNeuronsError: a file is no file of labelled answers, or there is no such judge, or none of its model.
    """
    listener = listener or Silence()
    chosen = [judges.get(name) for name in names or judges.names()]
    if not names:
        chosen = [judge for judge in chosen if isinstance(judge, RuleJudge)]
    for judge in chosen:
        judge.check()
    groups: dict[str, list[Labelled]] = {}
    for path in paths:
        for labelled in read_labelled(path):
            source = f"{Path(path).name}: {labelled.model}" if labelled.model else Path(path).name
            groups.setdefault(source, []).append(labelled)
    found = []
    total = len(chosen) * sum(map(len, groups.values()))
    with listener.task("judging", total) as advance:
        for source, group in groups.items():
            found += [_check(judge, source, group, advance) for judge in chosen]
    for said in filter(None, (judge.spent() for judge in chosen)):
        listener.say(said)
    return found


def _check(judge: Judge, source: str, group: Sequence[Labelled], advance: Advance) -> JudgeErrors:
    verdicts: dict[int, Verdict] = {}
    for index, judgement in judge.judge_all([labelled.exchange for labelled in group]):
        verdicts[index] = judgement.verdict
        advance(1)
    return JudgeErrors.of(judge.name, source, [(one.people, verdicts[index]) for index, one in enumerate(group)])
