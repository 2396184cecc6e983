"""What the vocabulary test measures, and the tables that it prints as (see `vocabulary` for how)."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from safety_neurons.explanation.lexicon import LEXICONS, MatchedLexicon
from safety_neurons.explanation.writes import SIDES, WEIGHTINGS, Side, Weighting

# The lexicon that a side's neurons are expected to speak.
OWN_LEXICON: dict[Side, str] = {"rejection": "refusal", "conformity": "compliance"}
SIGNIFICANT = 0.05
STATISTIC = "AUROC of the lexicon's tokens among other words, by logit; 0.5 is chance"


@dataclass(frozen=True)
class SetScore:
    """One layer's neurons of one side, measured with one lexicon. Scores are AUROCs, `..._top` shares of top words.

    `together` is the weighted sum's; `random` the random sets' mean, `random_low` to `random_high` their middle 95%.
    `single` and `single_max` are the mean and the highest of the set's single neurons, `single_above` says how many
    of them lie above `random_single_95`, the 95th percentile of random single neurons (5% would by chance), whose
    mean is `random_single`.
    """

    weighting: Weighting
    side: Side
    lexicon: str
    layer: int
    neurons: int
    join_processes: float
    random: float
    random_low: float
    random_high: float
    p: float
    p_adjusted: float
    single: float
    single_max: float
    single_above: int
    random_single: float
    random_single_95: float
    together_top: float
    random_top: float
    single_top: float


@dataclass(frozen=True)
class OverallScore:
    """The means of a side's scores over its layers; `p` is of the mean, by the same random sets, layer by layer.

    `single_above` is the share of all the set's neurons above their layer's 95th percentile; `lens` is None where the
    residual stream was not read.
    """

    weighting: Weighting
    side: Side
    lexicon: str
    layers: int
    significant: int
    join_processes: float
    random: float
    random_low: float
    random_high: float
    p: float
    single: float
    random_single: float
    single_above: float
    lens: float | None
    together_top: float
    random_top: float
    single_top: float


@dataclass(frozen=True)
class LensScore:
    """The residual stream after a layer, measured with one lexicon."""

    weighting: Weighting
    side: Side
    lexicon: str
    layer: int
    auroc: float
    top: float


@dataclass(frozen=True)
class VocabularyTest:
    """What was measured; empty where no word of a lexicon is a token of the model's vocabulary."""

    random_sets: int
    reference_tokens: int
    seed: int
    lexicons: tuple[MatchedLexicon, ...]
    scores: tuple[SetScore, ...]
    overall: tuple[OverallScore, ...]
    lens: tuple[LensScore, ...]

    def own(self, side: Side, weighting: Weighting) -> list[SetScore]:
        """A side's scores with its own lexicon, by layer."""
        key = (weighting, side, OWN_LEXICON[side])
        return [score for score in self.scores if (score.weighting, score.side, score.lexicon) == key]

    def first_readable(self, side: Side, weighting: Weighting) -> int | None:
        """The first layer at which the side's words are readable, or None.

        That is the lowest layer whose weighted sum scores significantly higher with the side's own lexicon (refusal
        for rejection, compliance for conformity) than random sets do: an adjusted p of at most 0.05.
        """
        return next((one.layer for one in self.own(side, weighting) if one.p_adjusted <= SIGNIFICANT), None)

    def to_json(self) -> dict[str, Any]:
        """Every number, with what the statistic is and the first readable layers."""
        lexicons = [
            {"name": one.name, "words": len(LEXICONS[one.name]), "tokens": len(one.tokens), "missing": one.missing}
            for one in self.lexicons
        ]
        first = [
            {"side": side, "weighting": weighting, "layer": self.first_readable(side, weighting)}
            for side in SIDES
            for weighting in WEIGHTINGS
        ]
        return asdict(self) | {"statistic": STATISTIC, "lexicons": lexicons, "first_readable": first}

    def tables(self, weighting: Weighting = "difference") -> Iterator[Table]:
        """For each side with neurons a table to print, of its own lexicon."""
        for side in SIDES:
            if scores := self.own(side, weighting):
                yield self._table(side, weighting, scores)

    def _table(self, side: Side, weighting: Weighting, scores: list[SetScore]) -> Table:
        lexicon = OWN_LEXICON[side]
        first = self.first_readable(side, weighting)
        table = Table(
            title=f"Do {side} neurons say {lexicon}? AUROC of {lexicon} words among others",
            caption=f"First readable layer: {'none' if first is None else first}. "
            f"* p <= {SIGNIFICANT} against {self.random_sets:,} random sets, adjusted for the layers. Alone: the mean "
            "of single neurons; above: how many of them beat 95% of random ones (5% is chance).",
            title_justify="left",
            caption_justify="left",
            box=SIMPLE_HEAD,
        )
        for column in ("layer", "neurons", "together", "random 95%", "p", "alone", "above", "logit lens"):
            table.add_column(column, justify="right")
        lens = {
            one.layer: one.auroc
            for one in self.lens
            if (one.weighting, one.side, one.lexicon) == (weighting, side, lexicon)
        }
        for one in scores:
            star = "*" if one.p_adjusted <= SIGNIFICANT else " "
            table.add_row(
                str(one.layer),
                str(one.neurons),
                f"{one.join_processes:.2f}{star}",
                f"{one.random_low:.2f}-{one.random_high:.2f}",
                f"{one.p_adjusted:.3f}",
                f"{one.single:.2f}",
                f"{one.single_above / one.neurons:.0%}",
                f"{lens[one.layer]:.2f}" if one.layer in lens else "-",
                end_section=one is scores[-1],
            )
        mean = next(one for one in self.overall if (one.weighting, one.side, one.lexicon) == (weighting, side, lexicon))
        table.add_row(
            "mean",
            str(sum(one.neurons for one in scores)),
            f"{mean.join_processes:.2f} ",
            f"{mean.random_low:.2f}-{mean.random_high:.2f}",
            f"{mean.p:.3f}",
            f"{mean.single:.2f}",
            f"{mean.single_above:.0%}",
            "-" if mean.lens is None else f"{mean.lens:.2f}",
        )
        return table
