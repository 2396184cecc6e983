"""A judge that reads no words: any verdict, the same for the same answer."""

import hashlib

from safety_neurons.core.statistics import Verdict
from safety_neurons.evaluation.contracts import Judgment, RuleJudge

VERDICTS: tuple[Verdict, ...] = ("refused", "complied", "complied", "refused", "unscored")


def by_hash(response: str) -> Verdict:
    """The verdict on a response."""
    return VERDICTS[hashlib.sha256(response.encode()).digest()[0] % 5]


JUDGE = RuleJudge("by-hash", "a hash of the answer", lambda _request, response: Judgment(by_hash(response), "hash"))
