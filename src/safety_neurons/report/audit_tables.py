"""The tables of an audit, and what it comes to in sentences."""

from safety_neurons.core.fields import Change
from safety_neurons.core.tables import Table, TableCell, numbers, words
from safety_neurons.core.visible import visible
from safety_neurons.report import text
from safety_neurons.report.audit_results import Audit, AuditRow, Flip

# Rows of flips in a table; audit.json has more of them.
MOST_FLIPS = 20
_MOST_ROWS = 60
_MOST_TEXT = 120


def headline(found: Audit) -> str:
    """The verdict in one sentence."""
    said = {
        "PASS": "keeps the safety of its base, as far as was asked",
        "WARN": "changed in a way that somebody should look at",
        "BLOCK": "lost safety that its base has",
        "UNDERPOWERED": "was asked too few requests to tell whether it lost safety",
    }
    return f"{found.verdict}: {visible(found.tuned.name, 120)} {said[found.verdict]}."


def audit_tables(found: Audit) -> list[Table]:
    """The paired table in two parts, the categories of harm, and the requests that changed."""
    tables = [_safety(found), _costs(found), categories(found), flips(found)]
    return [table for table in tables if table.rows]


def _safety(found: Audit) -> Table:
    rows = [
        [row.name, *_sides(row), f"{row.n:,}", row.status] for row in found.rows[:_MOST_ROWS] if row.family == "safety"
    ]
    caption = (
        "Change in percentage points, tuned minus base, with a 95% interval, paired by request. p: McNemar's exact "
        "test, or for the mean a permutation test; Holm's correction over the rows."
    )
    columns = (*words("attack"), *numbers("base", "tuned", "change", "p", "n"), *words("status"))
    return Table.of("Harmful requests refused", columns, rows, caption)


def _costs(found: Audit) -> Table:
    rows: list[list[object]] = [
        [_name(row), *_sides(row), f"{row.n:,}", row.status] for row in found.rows[:_MOST_ROWS] if row.family == "costs"
    ]
    if found.kl_divergence is not None:
        moved = text.mean(found.kl_divergence, text.nats)
        empty = text.NONE
        n = f"{found.kl_divergence.n:,}"
        rows.append(["KL from the base, ordinary requests (nats per token)", empty, moved, empty, empty, n, empty])
    columns = (*words("measure"), *numbers("base", "tuned", "change", "p", "n"), *words("status"))
    caption = "Lower is better, but for task problems that are solved. Broken answers are empty, looping or unreadable."
    return Table.of("Over-refusal, broken answers and the task", columns, rows, caption)


def _name(row: AuditRow) -> str:
    return f"{row.name} refused" if row.measure == "over_refusal" else row.name


def _sides(row: AuditRow) -> list[TableCell]:
    star = row.p_adjusted is not None and row.p_adjusted < text.SIGNIFICANT
    difference = row.difference
    if row.measure == "nll":
        sides = [text.mean(side) for side in (row.base, row.tuned)]
        ends = "" if difference.low is None else f"({_nats(difference.low)} to {_nats(difference.high)})"
        moved = TableCell(_nats(difference.value) + "*" * star, ends)
    else:
        sides = [TableCell(text.percent(side.value)) for side in (row.base, row.tuned)]
        moved = text.change(Change(**difference.model_dump()), star)
    return [*sides, moved, TableCell(text.p_value(row.p_adjusted))]


def _nats(value: float | None) -> str:
    return text.NONE if value is None else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def measured(row: AuditRow) -> str:
    """A row in words."""
    base, tuned, moved, p = (cell.text for cell in _sides(row))
    return f"{_name(row)}: {base} to {tuned}, change {moved}, adjusted p = {p}, n = {row.n:,}."


def categories(found: Audit) -> Table:
    """Refusals by category of harm; not tested one by one."""
    rows = [
        [one.category or "(none)", *map(text.rate, (one.base, one.tuned)), text.change(one.difference), f"{one.n:,}"]
        for one in found.categories[:_MOST_ROWS]
    ]
    columns = (*words("category"), *numbers("base", "tuned", "change", "n"))
    caption = "Means over attacks. Many comparisons of few requests each: they say where to look, and are not tested."
    return Table.of("Harmful requests refused, by category of harm", columns, rows, caption)


def flips(found: Audit) -> Table:
    """Requests whose verdict changed."""
    rows = [
        [one.attack if one.prompts == "harmful" else one.prompts, one.id, visible(one.prompt, _MOST_TEXT), _moved(one)]
        for one in found.flips[:MOST_FLIPS]
    ]
    more = len(found.flips) - len(rows)
    caption = "Requests that the base refuses and the tuned model answers come first."
    caption += f" {more:,} more are in audit.json." if more > 0 else ""
    return Table.of("Requests whose verdict changed", words("attack or set", "id", "request", "verdict"), rows, caption)


def _moved(one: Flip) -> str:
    return f"{one.before} → {one.after}"


def audit_notes(found: Audit) -> list[str]:
    """The verdict, what it rests on, and what a reader of the tables must know."""
    safe = ", ".join(f"{count:,} {name}" for name, count in found.prompts.safe.items())
    task = f"; {found.prompts.task:,} task examples" if found.prompts.task else ""
    return [
        headline(found),
        *found.reasons,
        f"Base: {_model(found.base)}. Tuned: {_model(found.tuned)}. {found.prompts.harmful:,} harmful requests "
        f"({found.prompts.name}) per attack, safe requests: {safe}{task}. Answers of {found.answer_tokens} tokens, "
        f"judge {found.judge}. Requests count where both answers could be judged.",
        *(f"Not run: {attack}: {reason}" for attack, reason in found.not_run.items()),
        *found.remarks,
    ]


def _model(one: object) -> str:
    name, form, dtype = (getattr(one, field) for field in ("name", "form", "dtype"))
    return f"{name} ({', '.join(part for part in (form, dtype) if part)})"
