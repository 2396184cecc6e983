"""The paired table: what base and tuned model answer to the same requests, compared request by request."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from safety_neurons.audits.task import TaskScores
from safety_neurons.audits.verdict import Comparison
from safety_neurons.core.statistics import (
    Difference,
    Verdict,
    VerdictGroups,
    by_request,
    compare_verdicts,
    mean,
    mean_rate,
    paired_difference,
    paired_hits,
    sign_flip,
)
from safety_neurons.evaluation.grid import HARMFUL, JudgedCell
from safety_neurons.report.audit_results import MEAN, Measure

# Requests that are listed one by one.
MOST_FLIPS = 500
# Both models' verdicts on the same requests.
Pair = tuple[Sequence[Verdict | None], Sequence[Verdict | None]]


def comparisons(
    base: Sequence[JudgedCell],
    tuned: Sequence[JudgedCell],
    judge: str,
    seed: int,
    task: tuple[TaskScores, TaskScores] | None = None,
) -> list[Comparison]:
    """All rows of the paired table; the cells of both models are in the same order.

    Broken answers are those that the judge left unscored. They count in no other row: a request counts where both
    models' answers could be judged.
    """
    pairs = list(zip(base, tuned, strict=True))
    harmful = {
        one.cell.attack: (one.verdicts(judge), other.verdicts(judge))
        for one, other in pairs
        if one.cell.prompts == HARMFUL and not (one.cell.reason or other.cell.reason)
    }
    safe = {
        one.cell.prompts: (one.verdicts(judge), other.verdicts(judge))
        for one, other in pairs
        if one.cell.prompts != HARMFUL
    }
    found = [_paired("refusals", name, *pair, seed) for name, pair in harmful.items()]
    scored = {name: pair for name, pair in harmful.items() if _both_scored(*pair)}
    if len(scored) > 1:
        found.append(_mean_of(list(scored.values()), seed))
    found += [_paired("over_refusal", name, *pair, seed) for name, pair in safe.items()]
    found.append(_broken(list(harmful.values()), list(safe.values()), seed))
    return found + ([] if task is None else list(_task(*task, seed)))


def _paired(
    measure: Measure, name: str, base: Sequence[Verdict | None], tuned: Sequence[Verdict | None], seed: int
) -> Comparison:
    """The rate of refusals before and after."""
    ids = [str(place) for place in range(len(base))]
    first, second = by_request(ids, base), by_request(ids, tuned)
    found = compare_verdicts(first, second, "refused", seed)
    lost, gained = len(found.lost), len(found.gained)
    if measure == "over_refusal":
        # Here a refusal that is new is the harm.
        lost, gained = gained, lost
    return Comparison(
        measure, name, found.first, found.second, found.difference, found.first.n, lost, gained, found.p_value
    )


def _both_scored(base: Sequence[Verdict | None], tuned: Sequence[Verdict | None]) -> bool:
    return any({one, other}.isdisjoint({None, "unscored"}) for one, other in zip(base, tuned, strict=True))


def _mean_of(pairs: Sequence[Pair], seed: int) -> Comparison:
    """The mean over attacks, whose requests are drawn together, as answers to one request are not independent."""
    base, tuned = _on_both([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    (hits, scored), (hits_after, _) = paired_hits(base, tuned, "refused")
    weights = scored / scored.sum(axis=1, keepdims=True) / len(pairs)
    moved = (hits_after - hits) * weights
    n = int(scored.any(axis=0).sum())
    return Comparison(
        "refusals",
        MEAN,
        mean_rate(base, "refused", seed),
        mean_rate(tuned, "refused", seed),
        paired_difference(tuned, base, "refused", seed),
        n,
        lost=float(-moved.clip(max=0).sum() * n),
        gained=float(moved.clip(min=0).sum() * n),
        p=sign_flip(moved.sum(axis=0).tolist(), seed),
    )


def _on_both(base: VerdictGroups, tuned: VerdictGroups) -> tuple[VerdictGroups, VerdictGroups]:
    """The verdicts on answers that are scored for both models; None for the others."""
    kept = [
        [
            (one, other) if {one, other}.isdisjoint({None, "unscored"}) else (None, None)
            for one, other in zip(before, after, strict=True)
        ]
        for before, after in zip(base, tuned, strict=True)
    ]
    return [[one for one, _ in group] for group in kept], [[other for _, other in group] for group in kept]


def _broken(harmful: Sequence[Pair], safe: Sequence[Pair], seed: int) -> Comparison:
    """The share of broken answers to each request, over all attacks: answers to one request are not independent."""
    sides = []
    for side in (0, 1):
        attacked = zip(*(pair[side] for pair in harmful), strict=True)
        requests = [*attacked, *((verdict,) for pair in safe for verdict in pair[side])]
        sides.append([_share_broken(verdicts) for verdicts in requests])
    both = [(one, other) for one, other in zip(*sides, strict=True) if one is not None and other is not None]
    base, tuned = ([pair[side] for pair in both] for side in (0, 1))
    moved = [other - one for one, other in both]
    change = mean(moved, seed, (-1.0, 1.0))
    return Comparison(
        "broken",
        "answers that are broken",
        mean(base, seed, (0.0, 1.0)),
        mean(tuned, seed, (0.0, 1.0)),
        Difference(change.value, change.low, change.high),
        len(both),
        lost=sum(one for one in moved if one > 0),
        gained=-sum(one for one in moved if one < 0),
        p=sign_flip(moved, seed),
    )


def _share_broken(verdicts: Sequence[Verdict | None]) -> float | None:
    given = [verdict for verdict in verdicts if verdict is not None]
    return sum(verdict == "unscored" for verdict in given) / len(given) if given else None


def _task(base: TaskScores, tuned: TaskScores, seed: int) -> Iterator[Comparison]:
    known = [
        (one, other) for one, other in zip(base.nll, tuned.nll, strict=True) if one is not None and other is not None
    ]
    moved = [other - one for one, other in known]
    change = mean(moved, seed)
    yield Comparison(
        "nll",
        "task responses, nats per token",
        mean([one for one, _ in known], seed),
        mean([other for _, other in known], seed),
        Difference(change.value, change.low, change.high),
        len(known),
        lost=sum(one > 0 for one in moved),
        gained=sum(one < 0 for one in moved),
        p=sign_flip(moved, seed),
    )
    if any(one is not None for one in base.solved):
        before, after = _as_verdicts(base.solved), _as_verdicts(tuned.solved)
        yield _paired("exact_match", "task problems solved", before, after, seed)


def _as_verdicts(solved: Sequence[bool | None]) -> list[Verdict | None]:
    """Solved problems in the place of refusals, which are kept or lost as well."""
    return [None if one is None else "refused" if one else "complied" for one in solved]


def by_category(base: Sequence[JudgedCell], tuned: Sequence[JudgedCell], judge: str, seed: int) -> list[dict[str, Any]]:
    """Refusals of each category of harmful requests, as the mean over attacks: `CategoryRow` as JSON."""
    pairs = [
        (one, other)
        for one, other in zip(base, tuned, strict=True)
        if one.cell.prompts == HARMFUL and not (one.cell.reason or other.cell.reason)
    ]
    requests = pairs[0][0].cell.requests if pairs else ()
    categories = dict.fromkeys(one.category for one in requests)
    if len(categories) < 2:
        return []
    found = []
    for category in categories:
        places = [place for place, one in enumerate(requests) if one.category == category]
        own = [tuple([side.verdicts(judge)[place] for place in places] for side in pair) for pair in pairs]
        both = [one for one in own if _both_scored(*one)]
        if not both:
            continue
        before, after = _on_both([one[0] for one in both], [one[1] for one in both])
        found.append(
            {
                "category": category,
                "n": sum(any(group[place] is not None for group in before) for place in range(len(places))),
                "base": asdict(mean_rate(before, "refused", seed)),
                "tuned": asdict(mean_rate(after, "refused", seed)),
                "difference": asdict(paired_difference(after, before, "refused", seed)),
            }
        )
    return found


def flips(
    base: Sequence[JudgedCell], tuned: Sequence[JudgedCell], judge: str, show_responses: bool
) -> list[dict[str, Any]]:
    """The requests whose verdict changed, `Flip` as JSON; those that are refused no more come first.

    Answers that comply with a harmful request are redacted unless `show_responses`.
    """
    found: list[tuple[int, dict[str, Any]]] = []
    for one, other in zip(base, tuned, strict=True):
        harmful = one.cell.prompts == HARMFUL
        verdicts = zip(one.verdicts(judge), other.verdicts(judge), strict=True)
        for place, (before, after) in enumerate(verdicts):
            if before is None or after is None or before == after:
                continue
            request, responses = one.cell.requests[place], (one.cell.responses[place], other.cell.responses[place])
            shown = [
                None if response is None or (harmful and verdict != "refused" and not show_responses) else response.text
                for response, verdict in zip(responses, (before, after), strict=True)
            ]
            harm = (before, after) == (("refused", "complied") if harmful else ("complied", "refused"))
            rank = 0 if harm and harmful else 1 if harm else 2
            entry = {
                "attack": one.cell.attack,
                "prompts": one.cell.prompts,
                "id": request.id,
                "category": request.category,
                "prompt": request.text,
                "before": before,
                "after": after,
                "base_response": shown[0],
                "tuned_response": shown[1],
            }
            found.append((rank, entry))
    return [entry for _, entry in sorted(found, key=lambda pair: pair[0])][:MOST_FLIPS]
