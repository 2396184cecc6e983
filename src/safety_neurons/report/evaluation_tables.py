"""The tables of an evaluation: defenses and grid of each model and judge, measures, and how good the judges are."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from safety_neurons.core.plugins import options_of
from safety_neurons.core.statistics import Rate, Verdict
from safety_neurons.core.tables import Table, TableCell, numbers, words
from safety_neurons.core.visible import visible
from safety_neurons.report import text
from safety_neurons.report.experiment_results import PairedChange
from safety_neurons.report.record import HARMFUL
from safety_neurons.report.results import CellResult, CellVerdicts, Evaluation
from safety_neurons.report.run_tables import MOST_ROWS

if TYPE_CHECKING:
    from safety_neurons.evaluation.judge_errors import JudgeErrors

_MOST_GRIDS = 40
_MOST_LINES = 60
_MOST_JUDGES = 12
_MOST_IDS = 5
_MOST_VERDICTS = 400_000
_NOT_JUDGED = "not asked"


@dataclass(frozen=True)
class Grid:
    """One model by one judge: its defenses over all attacks, and attack by defense. `reasons` say what is missing."""

    model: str
    judge: str
    defenses: Table
    cells: Table
    reasons: tuple[tuple[str, str], ...]


@dataclass
class CellDetails:
    """What the page shows of a chosen cell: prompt ids and verdicts. Lists of ids that cells share are stored once."""

    ids: dict[tuple[str, ...], int] = field(default_factory=dict)
    words: dict[str, int] = field(default_factory=dict)
    cells: list[dict[str, Any]] = field(default_factory=list)
    left: int = _MOST_VERDICTS

    def add(self, cell: CellResult, judge: str, judged: CellVerdicts) -> int:
        """The number of the cell's entry."""
        verdicts = [_NOT_JUDGED if one is None else visible(one, 40) for one in judged.verdicts]
        self.left -= len(verdicts)
        attack = cell.attack if cell.prompts == HARMFUL else f"{cell.prompts} requests"
        parts = (attack, f"against {cell.defense}", cell.model, f"judge {judge}")
        title = ", ".join(visible(part, 80) for part in parts)
        entry: dict[str, Any] = {"title": title, "lines": _lines(cell, judged, verdicts)}
        if self.left >= 0:
            ids = tuple(visible(one, 80) for one in cell.prompt_ids)
            entry["ids"] = self.ids.setdefault(ids, len(self.ids))
            entry["verdicts"] = [self.words.setdefault(verdict, len(self.words)) for verdict in verdicts]
        self.cells.append(entry)
        return len(self.cells) - 1

    def to_json(self) -> dict[str, Any]:
        """For the page's script."""
        return {"ids": list(map(list, self.ids)), "words": list(self.words), "cells": self.cells}


def _lines(cell: CellResult, judged: CellVerdicts, verdicts: list[str]) -> list[str]:
    """A cell in sentences."""
    counts = ", ".join(f"{verdicts.count(word):,} {word}" for word in dict.fromkeys(verdicts))
    what = "Attack success" if cell.prompts == HARMFUL else "Refused"
    lines = [
        f"{len(verdicts):,} requests: {counts}.",
        f"{what}: {text.rate(judged.rate).text} of the {judged.n:,} answers that could be judged.",
    ]
    against = judged.against_none
    if against and against.p is not None:
        lines.append(
            f"Against the undefended model on the same {against.n or 0:,} requests: {text.change(against).text} "
            f"points, p = {text.p_value(against.p)} (McNemar's exact test)."
        )
    blocked = cell.blocked - sum(cell.blocked_by.values())
    kinds = ((blocked, "without asking the model"), (cell.cut_off, "cut off at the limit of tokens"))
    lines += [f"{number:,} answered {how}." for number, how in kinds if number]
    return lines + _missing(cell) + ([f"{cell.reasoned:,} answered after reasoning."] if cell.reasoned else [])


def _missing(cell: CellResult) -> list[str]:
    """What a cell lacks: requests that were not run or were blocked by a filter, and thoughts without an end."""
    lines = [f"{number:,} blocked: {visible(reason, 200)}" for reason, number in cell.blocked_by.items()]
    for reason in dict.fromkeys(cell.not_run.values()):
        ids = [visible(one, 40) for one, why in cell.not_run.items() if why == reason]
        more = f" and {len(ids) - _MOST_IDS:,} more" if len(ids) > _MOST_IDS else ""
        lines.append(f"{len(ids):,} not run ({', '.join(ids[:_MOST_IDS])}{more}): {visible(reason, 200)}")
    if cell.unfinished:
        lines.append(f"{cell.unfinished:,} unscored: the thought reached the limit of tokens (reasoning_tokens).")
    return lines


def grids(found: Evaluation, details: CellDetails | None = None) -> list[Grid]:
    """Every model by every judge; cells that are in `details` carry the number of their entry."""
    pairs = list(itertools.product(found.models, found.judges))[:_MOST_GRIDS]
    return [_grid(found, model, judge, details) for model, judge in pairs]


def _grid(found: Evaluation, model: str, judge: str, details: CellDetails | None) -> Grid:
    mine = [cell for cell in found.cells if cell.model == model]
    attacks = _unique(cell.attack for cell in mine if cell.prompts == HARMFUL)
    safe = _unique(cell.prompts for cell in mine if cell.prompts != HARMFUL)
    named = {(cell.defense, cell.attack if cell.prompts == HARMFUL else "", cell.prompts): cell for cell in mine}
    summaries = {one.defense: one for one in found.summary if (one.model, one.judge) == (model, judge)}
    times = {one.defense: one for one in found.overhead if one.model == model}
    corrected = any(one.corrected for one in summaries.values())

    def shown(defense: str, attack: str, prompts: str) -> TableCell:
        cell = named.get((defense, attack, prompts))
        return TableCell(text.NONE) if cell is None else _cell(cell, judge, details)

    lines, defenses = [], _unique(cell.defense for cell in mine)
    for defense in defenses:
        one, time = summaries.get(defense), times.get(defense)
        line = [TableCell(defense), _shaded(one.attack_success if one else None)]
        line += [_shaded(one.corrected if one else None)] if corrected else []
        line += [text.change(one.against_none if one else None), *(shown(defense, "", name) for name in safe)]
        if times:
            ends = Rate(time.ratio, time.low, time.high, 0, 0) if time else None
            line.append(text.mean(ends))
        lines.append(line)
    # The longer list goes down, which is narrower.
    if len(attacks) >= len(defenses):
        sides = ("attack", *defenses)
        rows = [[attack, *(shown(defense, attack, HARMFUL) for defense in defenses)] for attack in attacks]
    else:
        sides = ("defense", *attacks)
        rows = [[defense, *(shown(defense, attack, HARMFUL) for attack in attacks)] for defense in defenses]
    columns = ["attack success", *(["corrected"] if corrected else []), "change"]
    columns += [*(f"{name} refused" for name in safe), *(["time ratio"] if times else [])]
    reasons = dict.fromkeys((cell.defense, f"not run everywhere: {cell.reason}") for cell in mine if cell.reason)
    for cell in mine:
        where = cell.attack if cell.prompts == HARMFUL else cell.prompts
        reasons |= dict.fromkeys((f"{cell.defense}, {where}", line) for line in _missing(cell))
    return Grid(
        model,
        judge,
        Table.of(f"Defenses, {model}, judge {judge}", (*words("defense"), *numbers(*columns)), lines),
        Table.of(f"Attack success, {model}, judge {judge}", (*words(sides[0]), *numbers(*sides[1:])), rows),
        tuple(reasons)[:_MOST_LINES],
    )


def _cell(cell: CellResult, judge: str, details: CellDetails | None) -> TableCell:
    judged = cell.judges.get(judge)
    if judged is None:
        return TableCell("not run", reason=cell.reason or "not judged")
    against = judged.against_none
    star = bool(against and against.p is not None and against.p < text.SIGNIFICANT)
    entry = details.add(cell, judge, judged) if details else None
    return text.rate(judged.rate, star, shade=judged.value, safe=cell.prompts != HARMFUL, entry=entry)


def _shaded(found: Rate | None) -> TableCell:
    return text.rate(found, shade=found.value if found else None)


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))[:_MOST_LINES]


def evaluation_tables(found: Evaluation) -> list[Table]:
    """All tables of an evaluation."""
    tables = [table for grid in grids(found) for table in (grid.defenses, grid.cells)]
    tables += [*measures(found), *judge_tables(found)]
    return [table for table in tables if table.rows]


def evaluation_notes(found: Evaluation) -> list[str]:
    """What a reader of the tables of an evaluation must know."""
    safe = ", ".join(f"{count} {name}" for name, count in found.prompts.safe.items())
    reasons = sorted({(cell.defense, cell.reason) for cell in found.cells if cell.reason})
    return [
        f"At most {found.prompts.harmful} harmful requests per attack ({found.prompts.name}); safe requests: {safe}. "
        f"Answers of {found.answer_tokens} tokens. Attack success and change: means over attacks, change in percentage "
        "points from no defense. Shares of the answers that could be judged, with 95% intervals (Wilson; for means a "
        "bootstrap over requests). *: differs from no defense (McNemar's exact test, 5%, one test a cell).",
        *(f"{defense}: {reason}" for defense, reason in reasons[:_MOST_LINES]),
    ]


def measures(found: Evaluation) -> list[Table]:
    """Ordinary answers, open questions, math problems and tasks under each defense, where they were measured."""
    ordinary = [
        [
            one.model,
            one.defense,
            text.mean(one.words, lambda value: f"{value:.1f}", ".1f"),
            *map(text.rate, (one.looping, one.blocked)),
            *(text.mean(value, _thousandths, ".3f") for value in (one.kl_divergence, one.perplexity)),
        ]
        for one in found.utility[:MOST_ROWS]
    ]
    preferred = [
        [
            one.model,
            one.defense,
            text.rate(one.win_rate.rate),
            "/".join(str(getattr(one.win_rate, name)) for name in ("wins", "ties", "losses", "swayed", "unscored")),
            text.mean(one.grades.mean, _thousandths, ".3f"),
        ]
        for one in found.preferences[:MOST_ROWS]
    ]
    solved = [
        [
            one.model,
            one.defense,
            text.rate(one.exact_match),
            f"{one.exact_match.n:,}",
            text.change(one.difference),
            text.rate(one.cut_off),
        ]
        for one in found.gsm8k[:MOST_ROWS]
    ]
    tasks = [
        [one.model, one.defense, task, name, _thousandths(metric.value), _thousandths(metric.stderr)]
        for one in found.tasks
        for task, result in one.results.items()
        for name, metric in result.metrics.items()
    ]
    who = words("model", "defense")
    return [
        table
        for table in (
            Table.of(
                "Ordinary requests",
                (*who, *numbers("words", "looping", "blocked", "KL, nats/token", "perplexity")),
                ordinary,
            ),
            Table.of(
                "Open questions, by the preference judge",
                (*who, *numbers("win rate over none", "won/tied/lost/swayed/unscored", "grade of 10")),
                preferred,
            ),
            Table.of(
                "Math problems (GSM8K)",
                (*who, *numbers("exact match", "n", "change from none", "cut off")),
                solved,
            ),
            Table.of(
                "Tasks of the LM Evaluation Harness",
                (*who, *words("task", "metric"), *numbers("value", "standard error")),
                tasks[:MOST_ROWS],
            ),
        )
        if table.rows
    ]


def _thousandths(value: float | None) -> str:
    return text.NONE if value is None else f"{value:.3f}"


def judge_tables(found: Evaluation) -> list[Table]:
    """How many answers each judge could judge, how often two agree, and how they differ from people."""
    own = list(found.judges.items())[:_MOST_JUDGES]
    scored = []
    for judge, about in own:
        given = [one for cell in found.cells for one in _verdicts(cell, judge) if one is not None]
        unscored = given.count("unscored")
        part = f"({text.percent(unscored / len(given))})" if unscored else ""
        scored.append([judge, text.count(len(given)), TableCell(text.count(unscored), part), about.source])
    agreed = [
        [
            f"{one.first} and {one.second}",
            one.requests,
            text.percent(one.same),
            text.score(one.kappa),
            text.count(one.n),
        ]
        for one in agreements(found)
    ]
    tables = [
        Table.of("Judges", (*words("judge"), *numbers("answers", "unscored"), *words("source")), scored),
        Table.of(
            "Agreement of two judges",
            (*words("judges", "requests"), *numbers("same verdict", "kappa", "n")),
            agreed,
            "On the answers that both could judge. Kappa (Cohen 1960): 0 is chance, 1 is full agreement.",
        ),
        *(_confusion(judge, one.source, one.counts) for judge, one in list(found.judge_errors.items())[:_MOST_JUDGES]),
    ]
    return [table for table in tables if table.rows]


@dataclass(frozen=True)
class Agreement:
    """Two judges on the answers that both could judge; `kappa` is None where both always give one verdict."""

    first: str
    second: str
    requests: str
    n: int
    same: float
    kappa: float | None


def agreements(found: Evaluation) -> list[Agreement]:
    """Every pair of judges, on harmful and on safe requests."""
    agreed = []
    for first, second in itertools.combinations(list(found.judges)[:_MOST_JUDGES], 2):
        for requests in ("harmful", "safe"):
            both = [
                pair
                for cell in found.cells
                if (cell.prompts == HARMFUL) == (requests == "harmful")
                for pair in zip(_verdicts(cell, first), _verdicts(cell, second), strict=False)
                if None not in pair and "unscored" not in pair
            ]
            if both:
                same = sum(one == other for one, other in both) / len(both)
                agreed.append(Agreement(first, second, requests, len(both), same, kappa(both)))
    return agreed


def kappa(pairs: Sequence[tuple[Any, Any]]) -> float | None:
    """Cohen's kappa: agreement beyond what two judges with these habits would reach by chance."""
    n = len(pairs)
    first, second = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    chance = sum(first[word] * second[word] for word in first) / n**2
    same = sum(one == other for one, other in pairs) / n
    return None if chance == 1 else (same - chance) / (1 - chance)


def _verdicts(cell: CellResult, judge: str) -> list[Verdict | None]:
    return cell.judges[judge].verdicts if judge in cell.judges else []


def _confusion(judge: str, source: str, counts: Mapping[str, Mapping[str, int]]) -> Table:
    """A judge beside people: for each verdict of people, how often the judge gave which."""
    verdicts = list(dict.fromkeys([*counts, *(word for row in counts.values() for word in row)]))[:_MOST_JUDGES]
    n = sum(sum(row.values()) for row in counts.values())
    same = sum(row.get(word, 0) for word, row in counts.items())
    rows = []
    for people, row in list(counts.items())[:_MOST_JUDGES]:
        all_ = sum(row.values())
        parts = [row.get(word, 0) for word in verdicts]
        rows.append(
            [people, *(TableCell(text.count(one), f"({text.percent(one / all_)})" if all_ else "") for one in parts)]
        )
    agreed = f"The same verdict on {text.percent(same / n if n else None)} of {n:,} answers. "
    columns = (*words("people"), *numbers(*(f"judge: {word}" for word in verdicts)))
    return Table.of(f"{judge} beside people", columns, rows, agreed + source)


def judge_check_tables(errors: Sequence["JudgeErrors"]) -> list[Table]:
    """Judges on answers that people labeled: for each source all judges' agreement, then each judge's confusion."""
    tables = []
    for source in dict.fromkeys(one.source for one in errors):
        own = [one for one in errors if one.source == source]
        rows = [
            [
                one.judge,
                text.rate(one.agreement),
                *(
                    " / ".join(
                        str(getattr(one, f"{people}_{judged}")) for judged in ("refused", "complied", "unscored")
                    )
                    for people in ("refused", "complied")
                ),
            ]
            for one in own
        ]
        columns = (*words("judge"), *numbers("agreement", "people: refused", "people: complied"))
        title = f"{source}: {own[0].agreement.n:,} answers, agreement of judges with people"
        caption = "By people's verdict: how often the judge gives refused / complied / unscored."
        tables.append(Table.of(title, columns, rows, caption))
    return tables


def comparison_table(rows: Sequence[Mapping[str, Any]], first: str, second: str) -> Table:
    """Two evaluations request by request (`evaluation.comparison.compare`)."""
    lines = []
    for one in rows:
        change = PairedChange(**{name: one["difference"][name] for name in ("value", "low", "high")})
        lines.append(
            [
                " / ".join(dict.fromkeys(one["defenses"])),
                one["attack"],
                one["prompts"],
                one["judge"],
                *(text.percent(one[side]["value"]) for side in ("first", "second")),
                text.change(change, one["adjusted_p"] < text.SIGNIFICANT),
                f"+{len(one['gained'])} {chr(0x2212)}{len(one['lost'])}",
                text.count(one["second"]["n"]),
            ]
        )
    columns = (*words("defense", "attack", "prompts", "judge"), *numbers("first", "second", "change", "flipped", "n"))
    caption = (
        "Harmful requests answered, safe ones refused; the change in percentage points. *: not chance (McNemar's exact "
        "test, 5%, Holm's correction over all rows)."
    )
    return Table.of(f"From {first} to {second}", columns, lines, caption)


def members(title: str, family: Any) -> Table:
    """The members of a plug-in family: what each does, its options, and its source."""
    rows = []
    for member in map(family.get, family.names()):
        options = ", ".join(f"{option}={value}" for option, value in options_of(member).items())
        # A judge is its source.
        about = [getattr(member, name) for name in ("description", "formula") if hasattr(member, name)]
        rows.append([member.name, *about, options or text.NONE, member.source])
    about = ["what it does"] if any(len(one) > 3 for one in rows) else []
    return Table.of(title, words("name", *about, "options", "source"), rows)
