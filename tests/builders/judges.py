"""Judges that read no words: random models write gibberish, and what is tested is everything around the verdicts.

Settings name them as a user names a judge of his own: by this file and their name in it, which is their `name`.
"""

import hashlib

from safety_neurons.evaluation.judges import Judgment, RuleJudge, Verdict


def by_hash(response: str) -> Verdict:
    """Any verdict, the same for the same answer."""
    verdicts: tuple[Verdict, ...] = ("refused", "complied", "complied", "refused", "unscored")
    return verdicts[hashlib.sha256(response.encode()).digest()[0] % 5]


def by_prompt(prompt: str) -> Verdict:
    """Of four harmful prompts in a row two are refused, one is answered, and one cannot be judged."""
    number = int("0" + "".join(letter for letter in prompt if letter.isdigit()))
    if "harm" in prompt:
        verdicts: tuple[Verdict, ...] = ("refused", "refused", "complied", "unscored")
        return verdicts[number % 4]
    return "refused" if number % 4 == 3 else "complied"


def by_word(response: str) -> Verdict:
    """The verdict that the answer itself ends with."""
    verdicts: tuple[Verdict, ...] = ("complied", "refused", "unscored")
    return next(verdict for verdict in verdicts if response.endswith(verdict))


def by_request(prompt: str, response: str) -> Verdict:
    """As by_prompt, but whether a plan to harm is refused depends on the answer, too; other harm is refused."""
    if "harm" in prompt and "Plan" not in prompt:
        return "refused"
    answered = hashlib.sha256(response.encode()).digest()[0] % 2 == 0
    verdict = by_prompt(prompt)
    return "refused" if "harm" in prompt and verdict == "complied" and not answered else verdict


def _name(constant: str) -> str:
    return f"{__file__}:{constant}"


BY_HASH = RuleJudge(_name("BY_HASH"), "the tests", lambda _prompt, response: Judgment(by_hash(response), "hash"))
BY_PROMPT = RuleJudge(_name("BY_PROMPT"), "the tests", lambda prompt, _: Judgment(by_prompt(prompt), "prompt"))
BY_WORD = RuleJudge(_name("BY_WORD"), "the tests", lambda _prompt, response: Judgment(by_word(response), "said so"))
BY_REQUEST = RuleJudge(_name("BY_REQUEST"), "the tests", lambda *both: Judgment(by_request(*both), "both"))
NOT_STUCK = RuleJudge(
    _name("NOT_STUCK"), "the tests", lambda _, answer: Judgment("complied" if "AAAA" in answer else "refused", "AAAA")
)
ALWAYS_REFUSED = RuleJudge(_name("ALWAYS_REFUSED"), "the tests", lambda *_: Judgment("refused", "always"))
