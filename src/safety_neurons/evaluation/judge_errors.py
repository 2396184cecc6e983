"""A judge's errors, measured on answers that people labeled, and rates that are corrected for them."""

import json
import operator
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import reduce
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy
from scipy.optimize import brentq
from scipy.stats import beta, norm

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.fields import Count
from safety_neurons.core.files import write_json
from safety_neurons.core.progress import Listener, Silence
from safety_neurons.core.records import JsonlCache, Record, read_record
from safety_neurons.core.statistics import CONFIDENCE, Array, Rate, share
from safety_neurons.evaluation import judges
from safety_neurons.evaluation.judges import Judge, JudgeInput, RuleJudge, Verdict
from safety_neurons.evaluation.judging import CachedVerdict, judge_inputs
from safety_neurons.models.generate import UNFINISHED
from safety_neurons.models.reasoning import part
from safety_neurons.prompts.read import REQUEST_COLUMNS, listed, read_table, requests_of
from safety_neurons.prompts.table import PromptRow, PromptTable

# Grid points for sensitivity and for specificity, and grid steps for the true share.
POINTS = 20
STEPS = 500
_TAIL = (1 - CONFIDENCE) / 2
_MEASURED = resources.files("safety_neurons.evaluation.judges") / "measured.json"


@dataclass(frozen=True)
class JudgeErrors:
    """The confusion counts of a judge: `refused_complied` answers are refused for people, complied for the judge.

    Partial refusals are refused. `source` names the answers. Unscored answers are counted, but play no part in
    sensitivity and specificity.
    """

    judge: str
    source: str
    refused_refused: Count
    refused_complied: Count
    refused_unscored: Count
    complied_refused: Count
    complied_complied: Count
    complied_unscored: Count

    @classmethod
    def of(cls, judge: str, source: str, verdicts: Iterable[tuple[Verdict, Verdict]]) -> Self:
        """Count pairs of (what people said, what the judge said).

        Raises:
            ValueError: people said "unscored".
        """
        counts = dict.fromkeys(_COUNTS, 0)
        for people, judged in verdicts:
            if people == "unscored":
                raise ValueError("people say refused or complied")
            counts[f"{people}_{judged}"] += 1
        return cls(judge, source, **counts)

    @classmethod
    def load(cls, path: Path, judge: str) -> "JudgeErrors":
        """The counts of the judge called `judge` in a file, summed over its sources.

        Raises:
            SafetyNeuronsError: the file is missing, has another format, or has no counts of this judge.
        """
        advice = f"`safety-neurons judge check LABELED.jsonl --out {path.name}` writes a file of judges' counts."
        every = read_record(path, _ErrorsFile, advice).judges
        matching = [errors for errors in every if errors.judge == judge]
        if not matching:
            known = ", ".join(dict.fromkeys(errors.judge for errors in every))
            raise SafetyNeuronsError(f"{path} has no counts of the judge {judge}. It has those of {known or 'none'}.")
        return reduce(operator.add, matching)

    @classmethod
    def bundled(cls, judge: str) -> "JudgeErrors":
        """The counts measured on XSTest's labeled answers (docs/judges.md).

        Raises:
            SafetyNeuronsError: this judge was not measured.
        """
        with resources.as_file(_MEASURED) as path:
            return cls.load(path, judge)

    @staticmethod
    def measured() -> list[str]:
        """The judges with bundled counts."""
        return [errors["judge"] for errors in json.loads(_MEASURED.read_text(encoding="utf-8"))["judges"]]

    def to_json(self) -> dict[str, Any]:
        """The counts by people's verdict, then the judge's, and their source."""
        people, judged = ("refused", "complied"), ("refused", "complied", "unscored")
        counts = {one: {other: getattr(self, f"{one}_{other}") for other in judged} for one in people}
        return {"source": self.source, "counts": counts}

    def __add__(self, other: "JudgeErrors") -> "JudgeErrors":
        counts = {name: getattr(self, name) + getattr(other, name) for name in _COUNTS}
        return JudgeErrors(self.judge, f"{self.source}, {other.source}", **counts)

    @property
    def agreement(self) -> Rate:
        """The share of labeled answers on which the judge agrees with people, with Wilson's interval.

        An unscored answer does not agree; it is part of `n`, and also counted in `unscored`.
        """
        agreed, n = self.refused_refused + self.complied_complied, sum(getattr(self, name) for name in _COUNTS)
        rate = share([True] * agreed + [False] * (n - agreed))
        return replace(rate, unscored=self.refused_unscored + self.complied_unscored)

    def hits_and_misses(self, people: Verdict) -> tuple[int, int]:
        """Of the scored answers with this verdict by people: how many the judge called the same, and how many not."""
        if people == "refused":
            return self.refused_refused, self.refused_complied
        return self.complied_complied, self.complied_refused


class _ErrorsFile(Record):
    judges: list[JudgeErrors]


_COUNTS = tuple(field.name for field in fields(JudgeErrors) if field.name not in ("judge", "source"))


def save_errors(errors: Sequence[JudgeErrors], path: Path) -> None:
    """Write counts of any judges on any sources to one file."""
    write_json(path, {"judges": [asdict(counts) for counts in errors]})


def corrected(rate: Rate, errors: JudgeErrors, counted: Verdict) -> Rate:
    """The share of `counted` that people would have found, estimated from the judge's share.

    (share + specificity - 1) / (sensitivity + specificity - 1), clamped to [0, 1] (Rogan and Gladen 1978, American
    Journal of Epidemiology 107). The interval is the highest-density part of the true share's posterior under a flat
    prior, averaged over the posteriors of sensitivity and specificity (Beta, Jeffreys prior). The judge's share counts
    for the number of answers that the width of its interval implies, whether that is Wilson's or a bootstrap over
    requests. So the interval has a width even where the judge finds less than its false alarms alone, and the value
    is 0.

    The estimate assumes that the judge errs on these answers as on the labeled ones. The value is None without a rate,
    and where the judge cannot be told from chance.

    Args:
        rate: the share of `counted` among the judged answers; `n` and `unscored` are passed on.
        counted: "refused" or "complied".
    """
    other: Verdict = "complied" if counted == "refused" else "refused"
    counts = errors.hits_and_misses(counted), errors.hits_and_misses(other)
    none = Rate(None, None, None, rate.n, rate.unscored)
    if rate.value is None or rate.low is None or rate.high is None or not all(map(sum, counts)):
        return none
    middles = (numpy.arange(POINTS) + 0.5) / POINTS
    quantiles = (beta.ppf(middles, hits + 0.5, misses + 0.5) for hits, misses in counts)
    sensitivity, specificity = (grid.ravel() for grid in numpy.meshgrid(*quantiles))
    if numpy.quantile(sensitivity + specificity, _TAIL) <= 1:
        return none
    answers = _answers_behind(rate.value, (rate.high - rate.low) / 2, rate.n)
    low, high = _interval(rate.value, answers, sensitivity, specificity)
    sensitive, specific = (hits / (hits + misses) for hits, misses in counts)
    exact = (rate.value + specific - 1) / (sensitive + specific - 1)
    value = min(max(exact, 0.0), 1.0)
    return Rate(value, min(low, value), max(high, value), rate.n, rate.unscored)


def _answers_behind(share: float, half: float, n: int) -> float:
    """The number of independent answers, at most `n`, whose Wilson interval has this half-width."""
    z = float(norm.ppf(1 - _TAIL))

    def too_wide(answers: float) -> float:
        return float(z * (share * (1 - share) * answers + z**2 / 4) ** 0.5 / (answers + z**2) - half)

    if too_wide(n) >= 0:
        return float(n)
    # An interval from 0 to 1 stands for no answers.
    return float(brentq(too_wide, 0, n)) if too_wide(0) > 0 else 0.0


def _interval(share: float, answers: float, sensitivity: Array, specificity: Array) -> tuple[float, float]:
    """The 95% interval of the true share, given equally likely sensitivities and specificities [points]."""
    # Points at which the judge would be worse than chance are left out.
    informative = sensitivity + specificity > 1
    grid = numpy.linspace(0, 1, STEPS + 1)
    seen = grid[:, None] * sensitivity[informative] + (1 - grid)[:, None] * (1 - specificity[informative])
    seen = seen.clip(1e-12, 1 - 1e-12)
    likelihood = answers * (share * numpy.log(seen) + (1 - share) * numpy.log1p(-seen))
    density = numpy.exp(likelihood - likelihood.max()).mean(axis=1)
    densest = numpy.argsort(-density, kind="stable")
    inside = numpy.cumsum(density[densest]) < CONFIDENCE * density.sum()
    held = grid[densest[: int(inside.sum()) + 1]]
    return float(held.min()), float(held.max())


# Without case, numbers in front and underscores: XSTest has 1_full_compliance, 2_full_refusal and 3_partial_refusal.
# A partial refusal is a refusal: not all that was asked for was given.
LABELS: dict[str, Verdict] = {
    **dict.fromkeys(("refused", "refuse", "refuses", "refusal", "full refusal"), "refused"),
    **dict.fromkeys(("partial refusal", "partially refused"), "refused"),
    **dict.fromkeys(("complied", "comply", "complies", "compliance", "full compliance"), "complied"),
}
LABEL_COLUMNS = ("label", "final_label", "verdict", "annotation", "response_refusal_label")
# What yes means in columns that are named after it.
YES_COLUMNS: dict[str, Verdict] = {
    **dict.fromkeys(("refused", "refusal", "is_refusal", "is_refused"), "refused"),
    **dict.fromkeys(("complied", "compliance", "jailbroken", "is_jailbroken"), "complied"),
}
RESPONSE_COLUMNS = ("response", "completion", "answer", "output", "generation")
_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")


class Labeled(NamedTuple):
    """A request and its answer, people's verdict, and the model that answered (empty if the file does not say)."""

    exchange: JudgeInput
    people: Verdict
    model: str


def read_labeled(path: str | Path, listener: Listener | None = None) -> list[Labeled]:
    """Read a .jsonl, .json, .csv or .tsv file with a prompt, a response (or completion) and a label in each row.

    A label is `refused`, `complied`, or one of XSTest's three (`1_full_compliance` ...), in any case; yes and no (1 and
    0, true and false) are labels in a column that is named after one, such as `refused` or `jailbroken`. An optional
    column `model` names the model that answered. The listener hears which columns were taken, where that was a guess.

    Raises:
        SafetyNeuronsError: the file is missing, unreadable or empty, lacks a column, or has an invalid row.
    """
    path = Path(os.path.expanduser(path))
    table = read_table(path, str(path))
    prompt, response, label = (
        _column(table, path, *names) for names in (REQUEST_COLUMNS, RESPONSE_COLUMNS, (*LABEL_COLUMNS, *YES_COLUMNS))
    )
    model = table.find("model")
    requests = requests_of(table.rows, prompt, table.unit, str(path))
    labeled = []
    for row, request in zip(table.rows, requests.texts, strict=True):
        place = f"{table.unit.capitalize()} {row.place} of {path}"
        people = _verdict(row.values.get(label), label)
        if people is None:
            raise SafetyNeuronsError(f"{place}: {row.values.get(label)!r} is not a label. {_labels(row, label)}")
        answer = row.values.get(response)
        if not request.strip():
            raise SafetyNeuronsError(f"{place}: its {prompt} is not text. Correct or delete it.")
        if not isinstance(answer, str):
            raise SafetyNeuronsError(f"{place}: its {response} is not text. Correct or delete it.")
        name = "" if model is None or row.values.get(model) is None else str(row.values[model])
        parted = part(answer)
        missing = UNFINISHED if parted.unfinished else ""
        labeled.append(Labeled(JudgeInput(request, parted.answer, missing), people, name))
    usual = prompt.casefold() == "prompt" and response in RESPONSE_COLUMNS[:2] and label.casefold() == "label"
    guessed = [] if usual else [f"columns {prompt}, {response} and {label} (guessed)"]
    if remarks := [*guessed, *table.notes, *requests.notes]:
        (listener or Silence()).say(f"{path}: {'; '.join(remarks)}.")
    return labeled


def _verdict(value: Any, column: str) -> Verdict | None:
    """What a label says; None if it is not one."""
    said = re.sub(r"[\s_-]+", " ", str(value).strip().casefold())
    yes = YES_COLUMNS.get(column.casefold())
    if yes is not None and said in (*_YES, *_NO):
        other: Verdict = "complied" if yes == "refused" else "refused"
        return yes if said in _YES else other
    return LABELS.get(re.sub(r"^[123] ", "", said))


def _labels(row: PromptRow, label: str) -> str:
    said = str(row.values.get(label)).strip().casefold()
    if said in (*_YES, *_NO) and label.casefold() not in YES_COLUMNS:
        return f"If it means refused, rename the column {label!r} to `refused`; if it means complied, to `complied`."
    return "Labels are refused and complied, or 1_full_compliance, 2_full_refusal and 3_partial_refusal."


def _column(table: PromptTable, path: Path, *names: str) -> str:
    found = table.find(*names)
    if found is None:
        usual = {REQUEST_COLUMNS: "prompt", RESPONSE_COLUMNS: "response or completion"}.get(names, "label")
        raise SafetyNeuronsError(
            f"{path} has no column {usual}; it has {listed(table.columns)}. Labeled answers need prompt, response and "
            "label (refused or complied)."
        )
    return found


def check_judges(
    paths: Sequence[str | Path], names: Sequence[str] | None = None, listener: Listener | None = None
) -> list[JudgeErrors]:
    """Each judge's confusion counts for each file, and for each model in a file's `model` column.

    Args:
        names: judges, with their options. Default: all that need no model.

    Raises:
        SafetyNeuronsError: a file has no labeled answers, or a judge is unknown or lacks its model.
    """
    listener = listener or Silence()
    chosen = [judges.get(name) for name in names or judges.names()]
    if not names:
        chosen = [judge for judge in chosen if isinstance(judge, RuleJudge)]
    for judge in chosen:
        judge.check()
    groups: dict[str, list[Labeled]] = {}
    for path in paths:
        for labeled in read_labeled(path, listener):
            source = f"{Path(path).name}: {labeled.model}" if labeled.model else Path(path).name
            groups.setdefault(source, []).append(labeled)
    return [_check(judge, source, group, listener) for source, group in groups.items() for judge in chosen]


def _check(judge: Judge, source: str, group: Sequence[Labeled], listener: Listener) -> JudgeErrors:
    judgments = judge_inputs(judge, [labeled.exchange for labeled in group], JsonlCache(None, CachedVerdict), listener)
    pairs = [(one.people, judgment.verdict) for one, judgment in zip(group, judgments, strict=True)]
    return JudgeErrors.of(judge.name, source, pairs)
