"""Open questions in several turns, as in MT-Bench (Zheng et al. 2023, arXiv:2306.05685), and the answers to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safety_neurons.attacks import AttackedPrompt
from safety_neurons.defenses import Defended
from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.models.conversation import Turn
from safety_neurons.prompts.named import BUNDLED_FOLDER
from safety_neurons.prompts.read import read_table

BUNDLED = BUNDLED_FOLDER / "questions.jsonl"


@dataclass(frozen=True)
class Question:
    """What the user says, turn by turn."""

    id: str
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Dialogue:
    """A question and an answer to each of its turns."""

    question: Question
    answers: tuple[str, ...]

    def before(self, turn: int) -> tuple[Turn, ...]:
        """Everything that was said before the turn of this number, from 0."""
        found: list[Turn] = []
        for asked, answered in zip(self.question.turns[:turn], self.answers[:turn], strict=True):
            found += [Turn("user", asked), Turn("assistant", answered)]
        return tuple(found)


def read_questions(path: Path = BUNDLED) -> list[Question]:
    """Read a .jsonl or .json file whose rows have `turns`, a list of texts; the bundled 24 questions without one.

    `id` (or `question_id`) and `category` are taken where there are any.

    Raises:
        SafetyNeuronsError: the file is missing or cannot be read, a row has no turns, or two have one id.
    """
    table = read_table(path, str(path))
    identity, category = table.find("id", "question_id"), table.find("category")
    found: dict[str, Question] = {}
    for row in table.rows:
        turns = row.values.get("turns")
        if (
            not isinstance(turns, list)
            or not turns
            or any(not isinstance(one, str) or not one.strip() for one in turns)
        ):
            raise SafetyNeuronsError(
                f"{table.unit.capitalize()} {row.place} of {path} has no `turns`: a list of what the user says, such "
                'as {"turns": ["Name a river.", "How long is it?"]}.'
            )
        name = str(row.values.get(identity or "", row.place))
        if name in found:
            raise SafetyNeuronsError(f"Two questions in {path} have the id {name!r}. Give each its own, or none.")
        found[name] = Question(name, str(row.values.get(category or "", "")), tuple(one.strip() for one in turns))
    return list(found.values())


def answer_questions(defended: Defended, questions: Sequence[Question]) -> list[Dialogue]:
    """The answers of a defended model; each turn goes on from the turns before it and what was answered to them."""
    dialogues = [Dialogue(question, ()) for question in questions]
    for turn in range(max((len(question.turns) for question in questions), default=0)):
        going_on = [place for place, question in enumerate(questions) if turn < len(question.turns)]
        responses = defended.respond(
            [AttackedPrompt(questions[place].turns[turn], before=dialogues[place].before(turn)) for place in going_on]
        )
        for place, response in zip(going_on, responses, strict=True):
            dialogues[place] = Dialogue(questions[place], (*dialogues[place].answers, response.text))
    return dialogues
