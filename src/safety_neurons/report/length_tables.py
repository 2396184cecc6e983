"""The tables of answers at several lengths: by how much the short ones mislead."""

from safety_neurons.core.tables import Table, numbers, words
from safety_neurons.report import text
from safety_neurons.report.experiment_results import AnswerLengths, LengthCell
from safety_neurons.report.record import HARMFUL
from safety_neurons.report.run_tables import MOST_ROWS

_MOST_LENGTHS = 6


def lengths(found: AnswerLengths) -> list[Table]:
    """The means of each defense at each length, and the cells with the verdicts that turn."""
    return [_summary(found), *(_cells(found, tokens) for tokens in found.tokens[:-1][:_MOST_LENGTHS])]


def _summary(found: AnswerLengths) -> Table:
    rows = [
        [
            one.defense,
            "attack success" if one.prompts == HARMFUL else f"refused, {one.prompts}",
            text.count(one.tokens),
            text.rate(one.rate),
            text.change(one.difference),
            text.count(one.rate.n),
        ]
        for one in found.summary[:MOST_ROWS]
    ]
    longest = found.tokens[-1] if found.tokens else 0
    columns = numbers("tokens", "rate", f"minus {longest} tokens", "n")
    return Table.of("Rates by the length of the answers", (*words("defense", "rate of"), *columns), rows)


def _cells(found: AnswerLengths, tokens: int) -> Table:
    """One length beside the longest, cell by cell."""
    longest = found.tokens[-1]
    rows = [row for one in found.cells[:MOST_ROWS] if (row := _cell(one, tokens, longest)) is not None]
    title = f"Answers of {tokens} tokens beside those of {longest}"
    columns = numbers(f"at {tokens}", f"at {longest}", "turn to refusal", "turn to compliance", "n")
    return Table.of(title, (*words("defense", "attack", "prompts"), *columns), rows)


def _cell(one: LengthCell, tokens: int, longest: int) -> list[object] | None:
    by_length = {each.tokens: each for each in one.lengths}
    short, long = by_length.get(tokens), by_length.get(longest)
    if short is None or long is None or short.to_refused is None or short.to_complied is None:
        return None
    return [
        one.defense,
        one.attack,
        one.prompts,
        text.rate(short.rate),
        text.rate(long.rate),
        text.rate(short.to_refused),
        text.rate(short.to_complied),
        text.count(short.to_refused.n),
    ]


def length_notes(found: AnswerLengths) -> list[str]:
    """What a reader of these tables must know."""
    return [
        f"{found.requests:,} requests at most of each set ({found.on}), judge {found.judge}. Each answer is generated "
        "once, at the longest length, and the shorter ones are its first tokens, so they differ by length alone. At N: "
        "attack success for harmful prompts, refused for safe ones. Turn: the verdict is another one at the longest "
        "length; n counts the answers that are judged at both lengths. Differences: paired bootstrap over requests, in "
        "percentage points, 95% interval.",
        *(f"{one.defense}, {one.attack}, {one.prompts}: {one.reason}" for one in found.cells[:MOST_ROWS] if one.reason),
    ]
