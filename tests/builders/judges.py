"""Judges that read no words: random models write gibberish, and what is tested is everything around the verdicts."""

import contextlib
import hashlib
from collections.abc import Iterator

import pytest

from safety_neurons.evaluation import judges
from safety_neurons.evaluation.judges import Judge, Judgment, RuleJudge, Verdict


def by_hash(response: str) -> Verdict:
    """Any verdict, the same for the same answer."""
    verdicts: tuple[Verdict, ...] = ("refused", "complied", "complied", "refused", "unscored")
    return verdicts[hashlib.sha256(response.encode()).digest()[0] % 5]


def by_prompt(prompt: str) -> Verdict:
    """Of four harmful prompts in a row two are refused, one is answered, and one cannot be judged."""
    number = int("".join(letter for letter in prompt if letter.isdigit()))
    if "harm" in prompt:
        verdicts: tuple[Verdict, ...] = ("refused", "refused", "complied", "unscored")
        return verdicts[number % 4]
    return "refused" if number % 4 == 3 else "complied"


def by_length(response: str) -> Verdict:
    """Any verdict, which an answer of another length changes."""
    verdicts: tuple[Verdict, ...] = ("refused", "complied", "unscored")
    return verdicts[len(response) % 3]


def by_word(response: str) -> Verdict:
    """The verdict that the answer itself ends with."""
    verdicts: tuple[Verdict, ...] = ("complied", "refused", "unscored")
    return next(verdict for verdict in verdicts if response.endswith(verdict))


BY_HASH = RuleJudge("by-hash", "the tests", lambda _prompt, response: Judgment(by_hash(response), "hash"))
BY_PROMPT = RuleJudge("by-prompt", "the tests", lambda prompt, _response: Judgment(by_prompt(prompt), "the prompt"))
BY_LENGTH = RuleJudge("by-length", "the tests", lambda _prompt, response: Judgment(by_length(response), "length"))
BY_WORD = RuleJudge("by-word", "the tests", lambda _prompt, response: Judgment(by_word(response), "said so"))
ALWAYS_REFUSED = RuleJudge("always-refused", "the tests", lambda *_: Judgment("refused", "always"))
JUDGES = {judge.name: judge for judge in (BY_HASH, BY_PROMPT, BY_LENGTH, BY_WORD, ALWAYS_REFUSED)}


@contextlib.contextmanager
def findable(*others: RuleJudge) -> Iterator[None]:
    """The judges above, and others, are found by their names beside the library's."""
    known = JUDGES | {judge.name: judge for judge in others}
    original = judges.get

    def get(name: str) -> Judge:
        return known[name] if name in known else original(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "get", get)
        yield
