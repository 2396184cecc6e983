"""Exact match on grade-school math problems (GSM8K, Cobbe et al. 2021, arXiv:2110.14168), from a user's file.

Asked in the chat template without examples, so the numbers are not those of few-shot leaderboards; before and after
tuning they compare.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.statistics import Difference, Rate, Verdict, compare_verdicts, share
from safety_neurons.evaluation.contracts import Defended
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.prompts.read import REQUEST_COLUMNS, read_table

# Length of an answer, in tokens: the solution step by step.
SOLUTION_TOKENS = 400
MARK = "####"
INSTRUCTION = f"Solve the problem step by step. In the last line, write {MARK} and then the final number alone."
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
# A mark that no number follows is a heading of Markdown.
_MARKED = re.compile(rf"{MARK}[ \t*$\\]*({_NUMBER.pattern})")
# How the number is read; part of the cache key.
READING = "2"


@dataclass(frozen=True)
class Problem:
    question: str
    solution: Decimal


@dataclass(frozen=True)
class Solutions:
    """Whether each problem was solved, None where the answer was not run; and how many answers were cut off."""

    solved: tuple[bool | None, ...]
    cut_off: Rate

    @property
    def exact_match(self) -> Rate:
        return share(self.solved)

    def difference(self, base: "Solutions", seed: int) -> Difference:
        """The exact match minus that of `base` on the problems that both ran, with a paired bootstrap interval."""
        before, after = ({str(n): _verdict(one) for n, one in enumerate(each.solved)} for each in (base, self))
        return compare_verdicts(before, after, "complied", seed).difference


def _verdict(solved: bool | None) -> Verdict:
    """The outcome in the words of paired comparisons."""
    return "unscored" if solved is None else "complied" if solved else "refused"


def read_problems(path: Path) -> list[Problem]:
    """Read problems: `question` (or `prompt` ...) and `answer`, whose number follows `####`.

    If some rows have `test` in a column `split`, only those count.

    Raises:
        SafetyNeuronsError: the file is missing or unreadable, or a row has no question or no final number.
    """
    table = read_table(path, str(path))
    question, answer, split = table.find("question", *REQUEST_COLUMNS), table.find("answer"), table.find("split")
    if question is None or answer is None:
        raise SafetyNeuronsError(
            f"{path} has no column {'answer' if question else 'question'}. Give each row a question and an answer, as "
            "GSM8K has."
        )
    rows = [row for row in table.rows if split and row.values.get(split) == "test"] or table.rows
    problems = []
    for row in rows:
        text, solution = row.values.get(question), final_number(str(row.values.get(answer)))
        if not isinstance(text, str) or not text.strip() or solution is None:
            raise SafetyNeuronsError(
                f"{table.unit.capitalize()} {row.place} of {path} is not a problem: it needs a question, and an answer "
                f"that ends with '{MARK} ' and a number. Correct or delete it."
            )
        problems.append(Problem(text.strip(), solution))
    return problems


def final_number(text: str) -> Decimal | None:
    """The number after the last `####` that one follows on its line, or else the last number; None if there is none.

    Between mark and number may stand spaces and what emphasizes it or names dollars: `*`, `$` and backslashes.
    """
    # LaTeX for a comma between digits.
    text = text.replace("{,}", "")
    numbers = _MARKED.findall(text) or _NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def is_solution(text: str) -> bool:
    """Whether the last line of a text marks its final number as GSM8K's solutions do."""
    return _MARKED.search(text.strip().rpartition("\n")[2]) is not None


def solve(defended: Defended, problems: Sequence[Problem]) -> Solutions:
    """Ask a defended model all problems. An answer without a number, or a blocked one, is wrong."""
    responses = defended.respond([AttackedPrompt(f"{problem.question}\n\n{INSTRUCTION}") for problem in problems])
    solved = tuple(
        None if response.outcome == "not run" else final_number(response.text) == problem.solution
        for problem, response in zip(problems, responses, strict=True)
    )
    return Solutions(solved, share([one.cut_off for one in responses if one.outcome != "not run"]))
