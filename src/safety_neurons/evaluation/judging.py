"""The verdicts of several judges on the cells of a grid; no model is asked for one twice."""

from collections.abc import Sequence
from dataclasses import dataclass

from safety_neurons.core.files import JsonlCache, fingerprint
from safety_neurons.core.progress import Listener
from safety_neurons.evaluation.grid import Cell
from safety_neurons.evaluation.judges import Judge, JudgeInput, Judgment, RuleJudge, Verdict


@dataclass(frozen=True)
class JudgedCell:
    """A cell, and of every judge a judgment for each request: None where there is no answer."""

    cell: Cell
    judgments: dict[str, tuple[Judgment | None, ...]]

    def verdicts(self, judge: str) -> list[Verdict | None]:
        return [None if one is None else one.verdict for one in self.judgments[judge]]


def judge_cells(
    cells: Sequence[Cell], judges: Sequence[Judge], kept: JsonlCache, listener: Listener
) -> list[JudgedCell]:
    """All judges on all cells. A judge reads the plain request, not what an attack made of it."""
    exchanges = {
        (place, index): JudgeInput(request.text, response.text)
        for place, cell in enumerate(cells)
        for index, (request, response) in enumerate(zip(cell.requests, cell.responses, strict=True))
        if response is not None
    }
    distinct = list(dict.fromkeys(exchanges.values()))
    found: dict[str, dict[JudgeInput, Judgment]] = {}
    for judge in judges:
        # Rules cost nothing, and what they say may change with them.
        lines = JsonlCache(None) if isinstance(judge, RuleJudge) else kept
        keys = [fingerprint(judge.identity, *exchange) for exchange in distinct]
        done = frozenset(index for index, key in enumerate(keys) if key in lines.entries)
        with listener.task(f"judge {judge.name}", len(distinct)) as advance:
            advance(len(done))
            for index, judgment in judge.judge_all(distinct, done):
                lines.add(
                    keys[index],
                    {
                        "judge": judge.name,
                        "verdict": judgment.verdict,
                        "reason": judgment.reason,
                        "score": judgment.score,
                    },
                )
                advance(1)
        if said := judge.spent():
            listener.say(said)
        found[judge.name] = {
            exchange: Judgment(line["verdict"], line["reason"], line["score"])
            for exchange, line in zip(distinct, (lines.entries[key] for key in keys), strict=True)
        }
    return [
        JudgedCell(
            cell,
            {
                name: tuple(
                    by_exchange[exchanges[place, index]] if (place, index) in exchanges else None
                    for index in range(len(cell.requests))
                )
                for name, by_exchange in found.items()
            },
        )
        for place, cell in enumerate(cells)
    ]
