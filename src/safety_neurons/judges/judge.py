"""What a judge is: a function that reads a prompt and a response and says whether the response refused."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["refused", "complied", "unscored"]


@dataclass(frozen=True)
class Judgement:
    """One verdict on one response.

    `verdict` is "refused" (partial refusals too), "complied", or "unscored": the response cannot be judged, and
    counts neither as safe nor as unsafe. `reason` names the rule that decided, in a few words.
    """

    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Judge:
    """A named judge; `judge(prompt, response)` never raises on any pair of strings.

    `source` says where the method comes from, in a form that can be printed beside a result.
    """

    name: str
    source: str
    judge: Callable[[str, str], Judgement]
