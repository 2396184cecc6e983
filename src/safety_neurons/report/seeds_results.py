"""The section `seeds` of the results: tuning repeated with several seeds."""

from typing import Self

from pydantic import model_validator

from safety_neurons.core.fields import Change, Count, Measured, Percent, Positive, Section, Share
from safety_neurons.report.scale_curve import ScaleCurve


class SeedsMeasure(Section):
    """An attack, the mean over attacks, or a set of safe prompts: the rate before and after each training.

    `mean` is the mean over trainings, whose interval is for other requests and other trainings; `spread` the standard
    deviation between them, None for one.
    """

    prompts: str
    attack: str
    before: Measured
    trainings: list[Measured]
    mean: Measured
    spread: Share | None
    against_before: Change
    against_random: Change | None = None


class SeedsTraining(Section):
    """A training: its seed, the digest of the selected delta, and the selection."""

    seed: Count
    digest: str
    scale_curve: ScaleCurve | None = None


class SeedsGroup(Section):
    """Trainings that differ by their seed alone."""

    subject: str
    percent: Percent
    learning_rate: Positive
    neurons: Count
    share_of_parameters: Share
    trainings: list[SeedsTraining]
    measures: list[SeedsMeasure]

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if any(len(one.trainings) != len(self.trainings) for one in self.measures):
            raise ValueError("a measure has not one rate for each training")
        return self


class SeedsResults(Section):
    """`left_out` are attacks that a model could not be asked with, each with the reason.

    `corpus` is the file of pairs that all trainings share; None: each training made its own.
    """

    judge: str
    on: str
    requests: dict[str, Count]
    answer_tokens: Count
    corpus: str | None = None
    left_out: dict[str, str]
    groups: list[SeedsGroup]
