"""A judge's own errors, measured against people, and rates that are corrected for them."""

import json
import operator
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import reduce
from importlib import resources
from pathlib import Path
from typing import Any, Self

import numpy
from pydantic import TypeAdapter, ValidationError
from scipy.stats import binomtest, norm

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.evaluate.rows import CONFIDENCE, Rate
from safety_neurons.judges import Verdict
from safety_neurons.storage import read_json, write_json

DRAWS = 10_000
Array = numpy.ndarray[Any, Any]


@dataclass(frozen=True)
class JudgeErrors:
    """How often a judge said what of answers that people called refused and complied (partial refusals are refused).

    The first part of a count's name is what people said, the second what the judge said. `source` says on which
    answers. What the judge left unscored is counted, and is no part of sensitivity and specificity.
    """

    judge: str
    source: str
    refused_refused: int
    refused_complied: int
    refused_unscored: int
    complied_refused: int
    complied_complied: int
    complied_unscored: int

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
        """What a file holds on the judge called `judge`, all of its sources together.

        Raises:
            SafetyNeuronsError: the file is missing, is none of these files, or has nothing on this judge.
        """
        content = read_json(path)
        try:
            found = TypeAdapter(list[JudgeErrors]).validate_python(content["judges"])
        except (KeyError, TypeError, ValidationError) as error:
            raise SafetyNeuronsError(
                f"{path} does not hold a judge's counts. `safety-neurons judge-check LABELLED.jsonl --out {path.name}` "
                "writes such a file."
            ) from error
        own = [errors for errors in found if errors.judge == judge]
        if not own:
            known = ", ".join(dict.fromkeys(errors.judge for errors in found))
            raise SafetyNeuronsError(f"{path} has no counts of the judge {judge}. It has those of {known or 'none'}.")
        return reduce(operator.add, own)

    @classmethod
    def bundled(cls, judge: str) -> "JudgeErrors":
        """The counts that were measured on XSTest's labelled answers (docs/judges.md).

        Raises:
            SafetyNeuronsError: this judge was not measured.
        """
        with resources.as_file(resources.files("safety_neurons.judges") / "measured.json") as path:
            return cls.load(path, judge)

    @staticmethod
    def measured() -> list[str]:
        """The judges of which counts are bundled."""
        content = json.loads((resources.files("safety_neurons.judges") / "measured.json").read_text(encoding="utf-8"))
        return [one["judge"] for one in content["judges"]]

    def save(self, path: Path) -> None:
        """Write a file that `load` reads."""
        save_errors([self], path)

    def __add__(self, other: "JudgeErrors") -> "JudgeErrors":
        counts = {name: getattr(self, name) + getattr(other, name) for name in _COUNTS}
        return JudgeErrors(self.judge, f"{self.source}, {other.source}", **counts)

    @property
    def agreement(self) -> Rate:
        """The share of all labelled answers on which the judge says what people say, with Wilson's interval.

        An unscored answer does not agree; it is in `n` and counted in `unscored` besides.
        """
        agreed, unscored = self.refused_refused + self.complied_complied, self.refused_unscored + self.complied_unscored
        n = sum(getattr(self, name) for name in _COUNTS)
        if not n:
            return Rate(None, None, None, 0, 0)
        interval = binomtest(agreed, n).proportion_ci(CONFIDENCE, method="wilson")
        return Rate(agreed / n, float(interval.low), float(interval.high), n, unscored)

    def hits_and_misses(self, people: Verdict) -> tuple[int, int]:
        """Of the answers that people gave this verdict and the judge any: how many it called the same, how many not."""
        if people == "refused":
            return self.refused_refused, self.refused_complied
        return self.complied_complied, self.complied_refused


_COUNTS = tuple(field.name for field in fields(JudgeErrors) if field.name not in ("judge", "source"))


def save_errors(errors: Sequence[JudgeErrors], path: Path) -> None:
    """Write counts of any judges on any sources as one file."""
    write_json(path, {"judges": [asdict(one) for one in errors]})


def corrected(rate: Rate, errors: JudgeErrors, counted: Verdict, seed: int = 0) -> Rate:
    """The share of `counted` that people would have found, estimated from the share that the judge found.

    (share + specificity - 1) / (sensitivity + specificity - 1), kept within 0 and 1 (Rogan and Gladen 1978, American
    Journal of Epidemiology 107). The interval holds the uncertainty of all three: sensitivity and specificity are drawn
    from their Beta posteriors under Jeffreys' prior, the share from the Beta distribution with the centre and the
    width of its own interval, which may come from Wilson's formula or from a bootstrap over requests.

    It holds where the judge errs on these answers as it did on the labelled ones. The value is None where there is
    none to correct, and where the judge cannot be told from chance: then its verdicts say nothing of people's.

    Args:
        rate: the share of `counted` among the judged answers; `n` and `unscored` are passed on.
        counted: "refused" or "complied".
    """
    other: Verdict = "complied" if counted == "refused" else "refused"
    found, positives = errors.hits_and_misses(counted), errors.hits_and_misses(other)
    none = Rate(None, None, None, rate.n, rate.unscored)
    if rate.value is None or rate.low is None or rate.high is None or not sum(found) or not sum(positives):
        return none
    generator = numpy.random.default_rng(seed)
    sensitivity, specificity = (generator.beta(hits + 0.5, misses + 0.5, DRAWS) for hits, misses in (found, positives))
    if numpy.quantile(sensitivity + specificity, (1 - CONFIDENCE) / 2) <= 1:
        return none
    share = _shares(rate.low, rate.high, generator)
    # A draw in which the judge knows nothing says nothing of the share.
    knows = sensitivity + specificity > 1
    drawn = _true_share(share[knows], sensitivity[knows], specificity[knows])
    low, high = numpy.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    value = float(_true_share(rate.value, found[0] / sum(found), positives[0] / sum(positives)))
    return Rate(value, min(float(low), value), max(float(high), value), rate.n, rate.unscored)


def _shares(low: float, high: float, generator: numpy.random.Generator) -> Array:
    """Draws of a share whose interval goes from `low` to `high`: [draws]."""
    centre, deviation = (low + high) / 2, (high - low) / 2 / norm.ppf((1 + CONFIDENCE) / 2)
    if deviation == 0:
        return numpy.full(DRAWS, centre)
    weight = centre * (1 - centre) / deviation**2 - 1
    return generator.beta(centre * weight, (1 - centre) * weight, DRAWS)


def _true_share(share: Any, sensitivity: Any, specificity: Any) -> Any:
    return numpy.clip((share + specificity - 1) / (sensitivity + specificity - 1), 0.0, 1.0)
