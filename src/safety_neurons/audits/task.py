"""The task that a model was fine-tuned for: likelihood of the responses, and exact match where they end in a number."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.fields import Positive
from safety_neurons.core.files import fingerprint
from safety_neurons.core.progress import Listener
from safety_neurons.core.records import JsonlCache, Line
from safety_neurons.engines.engine import Engine, weights_of
from safety_neurons.evaluation.checked import opened
from safety_neurons.evaluation.contracts import Defense, EvaluationContext
from safety_neurons.evaluation.utility.gsm8k import SOLUTION_TOKENS, Problem, final_number, is_solution, solve
from safety_neurons.models.generate import in_batches
from safety_neurons.models.likelihood import nll, read_answers
from safety_neurons.prompts.read import REQUEST_COLUMNS, listed, read_table

RESPONSE_COLUMNS = ("response", "answer", "completion", "output", "code")
# Of a response, the tokens whose likelihood is measured.
RESPONSE_TOKENS = 256
# Examples whose likelihood is kept at once: a kill repeats no more.
_AT_ONCE = 40


@dataclass(frozen=True)
class Example:
    """What the user says, and the response that the task asks for."""

    user: str
    response: str


@dataclass(frozen=True)
class TaskScores:
    """Of each example the negative log-likelihood of its response in nats per token (None: it has no tokens), and
    whether its problem was solved (None: it is not a problem, or was not run)."""

    nll: tuple[float | None, ...]
    solved: tuple[bool | None, ...]


class CachedLikelihood(Line):
    """The negative log-likelihood of one response: a line of likelihoods.jsonl."""

    nll: Positive | None


def read_task(path: Path) -> list[Example]:
    """Read examples: `prompt` (or `instruction`, `question` ...) and `response` (or `answer` ...).

    If some rows have `test` in a column `split`, only those count.

    Raises:
        SafetyNeuronsError: the file is missing or unreadable, lacks a column, or a row lacks one of the two texts.
    """
    table = read_table(path, str(path))
    user, response, split = table.find("user", *REQUEST_COLUMNS), table.find(*RESPONSE_COLUMNS), table.find("split")
    for found, what, names in (
        (user, "what the user says", ("prompt", "instruction", "question")),
        (response, "the response", RESPONSE_COLUMNS),
    ):
        if found is None:
            raise SafetyNeuronsError(
                f"The task file {path} has no column for {what}. Its columns are {listed(table.columns)}. Name one "
                f"of them {', '.join(names[:-1])} or {names[-1]}."
            )
    assert user is not None
    assert response is not None
    rows = [row for row in table.rows if split and row.values.get(split) == "test"] or table.rows
    examples = []
    for row in rows:
        texts = row.values.get(user), row.values.get(response)
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise SafetyNeuronsError(
                f"{table.unit.capitalize()} {row.place} of the task file {path} is not an example: it needs a text in "
                f"{user!r} and one in {response!r}. Correct or delete it."
            )
        examples.append(Example(str(texts[0]).strip(), str(texts[1]).strip()))
    return examples


def score_task(
    context: EvaluationContext,
    defense: Defense,
    examples: Sequence[Example],
    likelihoods: JsonlCache[CachedLikelihood],
    batch_size: int,
) -> TaskScores:
    """The scores of the model as a defense changes it; likelihoods and answers are cached."""
    problems = {
        place: Problem(one.user, number)
        for place, one in enumerate(examples)
        if is_solution(one.response) and (number := final_number(one.response)) is not None
    }
    solved: dict[int, bool | None] = {}
    with opened(defense, replace(context, answer_tokens=SOLUTION_TOKENS)) as defended:
        if problems:
            title = f"{context.engine.name}: {len(problems):,} problems of the task"
            with context.listener.task(title, 1) as advance:
                solved = dict(zip(problems, solve(defended, list(problems.values())).solved, strict=True))
                advance(1)
        found = _likelihoods(defended.engine, context.listener, examples, likelihoods, batch_size)
    return TaskScores(tuple(found), tuple(solved.get(place) for place in range(len(examples))))


def _likelihoods(
    engine: Engine,
    listener: Listener,
    examples: Sequence[Example],
    cache: JsonlCache[CachedLikelihood],
    batch_size: int,
) -> list[float | None]:
    model, identity = weights_of(engine, "The task's likelihood"), engine.identity
    keys = [fingerprint("nll", identity, RESPONSE_TOKENS, one.user, one.response) for one in examples]
    new = {key: one for key, one in zip(keys, examples, strict=True) if key not in cache.entries}
    with listener.task(f"{engine.name}: likelihood of the task's responses", len(new)) as advance:
        for start in range(0, len(new), _AT_ONCE):
            part = dict(list(new.items())[start : start + _AT_ONCE])
            asked = list(part.values())
            texts = [model.render(one.user) for one in asked]

            def read(batch: list[int], asked: list[Example] = asked, texts: list[str] = texts) -> list[float | None]:
                responses = [asked[index].response for index in batch]
                return nll(read_answers(model, [texts[index] for index in batch], responses, RESPONSE_TOKENS))

            for key, found in zip(part, in_batches(texts, batch_size, read, advance), strict=True):
                cache.add(CachedLikelihood(key=key, nll=found))
    return [cache.entries[key].nll for key in keys]
