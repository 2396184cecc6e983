"""How many answers a second a judge of rules reads, on one core.

Run it alone: `python benchmarks/judge.py`.
"""

import argparse
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from safety_neurons.evaluation import judges
from safety_neurons.evaluation.judges import Judgment

METHOD = """\
Each answer is made of sentences like those of chat models, in a fixed random order: a third refuses in its first
sentence, and the others answer, with lists and other markup. Answers are cut at a number of words: a word is taken as
4/3 tokens. Every round judges all of them; a cell is the median over the rounds by processor time.
"""
BAR = 1500
TOKENS_PER_WORD = 4 / 3
REFUSALS = (
    "I'm sorry, but I can't assist with that.",
    "I cannot fulfill your request. I'm just an AI, and it's not within my programming to help with this.",
    "As an AI language model, I can\u2019t help with anything that could harm somebody.",
    "It is illegal and unethical to do this, and it can lead to serious legal consequences.",
)
SENTENCES = (
    "Sure, here's an overview of how to plan a garden for a small yard.",
    "First, measure the ground and draw a plan of it on paper, with the house, the paths and the trees that are there.",
    "1. **Light**: note which parts of the yard get sun in the morning, and which of them don't get any.",
    "2. **Soil**: dig a small hole, fill it with water, and see how long it takes until the water has drained.",
    "- Tomatoes, beans and squash need at least six hours of sun; lettuce and spinach don't mind some shade.",
    "You'll want to water in the morning, because wet leaves at night make it easy for mold to grow.",
    "However, it's important to note that most roots need air as well, so let the soil dry before you water again.",
    "Many people find that a raised bed is easier to look after than open ground: there's less weeding and no mud.",
    'Ask a neighbor: "What grows well here?" \u2013 the answer tells you more than any book.',
    "If you're planting bulbs, set them three times as deep as they're high, with the pointed end up.",
    "In spring, cover young plants overnight when frost is forecast, and take the cover off before noon.",
    "Compost is made of leaves, grass, peel and coffee grounds, turned every two weeks until it's dark and loose.",
    "A mulch of straw keeps the weeds down, holds the water in the soil, and feeds the worms over the years.",
    "Let me know if you have any other questions, or if you'd like a list of plants for your climate!",
)
REQUESTS = ("How do I plan a garden?", "Explain what a raised bed is good for, and how one is built.")


@dataclass(frozen=True)
class Result:
    """Answers of one length: how many were judged a second, and as what."""

    tokens: int
    answers: int
    characters: float
    a_second: float
    verdicts: dict[str, int]


def answers(count: int, tokens: int) -> list[str]:
    """`count` answers of about `tokens` tokens each, always the same ones."""
    generator = random.Random(tokens)
    words = round(tokens / TOKENS_PER_WORD)
    found = []
    for number in range(count):
        text = generator.choice(REFUSALS if number % 3 == 0 else SENTENCES)
        while len(text.split(" ")) < words:
            text += generator.choice((" ", " ", " ", "\n\n")) + generator.choice(SENTENCES)
        found.append(" ".join(text.split(" ")[:words]))
    return found


def measure(judge: Callable[[str, str], Judgment], count: int, tokens: int, rounds: int) -> Result:
    """Judge answers of one length in every round."""
    texts = answers(count, tokens)
    verdicts: Counter[str] = Counter()
    seconds = []
    for _ in range(rounds):
        before = time.process_time()
        judgments = [judge(REQUESTS[place % len(REQUESTS)], text) for place, text in enumerate(texts)]
        seconds.append(time.process_time() - before)
        verdicts = Counter(judgment.verdict for judgment in judgments)
    mean = statistics.mean(len(text) for text in texts)
    return Result(tokens, count, mean, count / statistics.median(seconds), dict(verdicts))


def table(judge: str, results: Sequence[Result]) -> Table:
    """Answers a second, red where they miss the bar."""
    result = Table(title=f"The judge {judge}, on one core", title_justify="left")
    for column in ("tokens", "characters", "answers", "refused", "complied", "unscored", "bar", "a second"):
        result.add_column(column, justify="right")
    for row in results:
        result.add_row(
            str(row.tokens),
            f"{row.characters:.0f}",
            str(row.answers),
            *(str(row.verdicts.get(verdict, 0)) for verdict in ("refused", "complied", "unscored")),
            str(BAR),
            f"[{'green' if row.a_second >= BAR else 'red'}]{row.a_second:.0f}",
        )
    return result


def main() -> None:
    """Read the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(
        description="Measure how many answers a second a judge of rules reads.",
        epilog=METHOD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--judge", default="refusal", help="a judge that needs no model (default: refusal)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[24, 256], help="lengths (default: 24 256)")
    parser.add_argument("--answers", type=int, default=300, help="answers of each length (default: 300)")
    parser.add_argument("--rounds", type=int, default=5, help="times that each is judged (default: 5)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results to this file as well")
    options = parser.parse_args()
    judge = judges.rules(options.judge).judge
    results = [measure(judge, options.answers, tokens, options.rounds) for tokens in options.tokens]
    Console().print(table(options.judge, results))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in results], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
