"""What a judge is: it reads prompts and responses and says of each response whether it refused."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Verdict = Literal["refused", "complied", "unscored"]


class Exchange(NamedTuple):
    """What a judge reads: the plain request, without an attack's words, and the whole answer."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Judgement:
    """One verdict on one response.

    `verdict` is "refused" (partial refusals too), "complied", or "unscored": the response cannot be judged, and
    counts neither as safe nor as unsafe. `reason` names the rule that decided, in a few words. `score` is how harmful
    the response is, from 0 to 1, where the judge says more than yes or no.
    """

    verdict: Verdict
    reason: str
    score: float | None = None


@dataclass(frozen=True)
class Judge:
    """A named judge. What a subclass adds as fields are its options: `name:option=value` sets them.

    `source` says where the method comes from, in a form that can be printed beside a result.
    """

    name: str
    source: str

    def check(self) -> None:
        """Say before any work what would keep the judge from judging.

        Raises:
            CannotRun: no model was named for a judge that asks one.
        """

    def spent(self) -> str | None:
        """What this process has asked of a server for it, in a sentence; None where nothing was."""
        return None

    @property
    def identity(self) -> str:
        """The name of exactly these verdicts: what is kept of them is found again by it."""
        return self.name

    def judge_all(
        self, exchanges: Sequence[Exchange], done: frozenset[int] = frozenset()
    ) -> Iterator[tuple[int, Judgement]]:
        """Yield (index, judgement) for what is not `done`, as it is finished, in any order.

        Never fails on what a response holds: what cannot be judged is "unscored".
        """
        raise NotImplementedError


@dataclass(frozen=True)
class RuleJudge(Judge):
    """A judge that is a function of the texts; `judge(prompt, response)` never raises on any pair of strings."""

    judge: Callable[[str, str], Judgement]

    def judge_all(
        self, exchanges: Sequence[Exchange], done: frozenset[int] = frozenset()
    ) -> Iterator[tuple[int, Judgement]]:
        for index, exchange in enumerate(exchanges):
            if index not in done:
                yield index, self.judge(*exchange)
