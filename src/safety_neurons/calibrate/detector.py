"""A linear detector of harmful prompts: regularised logistic regression, and a threshold for a false-positive rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from safety_neurons.errors import SafetyNeuronsError

FOLDS = 5
# Strengths of the penalty, as scikit-learn counts them (smaller is stronger).
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Detector:
    """Scores prompts by features: `features @ weight + bias`, higher is more harmful.

    `ordinary` are the sorted scores of the ordinary training prompts, each by a detector that had not seen it: from
    them a threshold is taken. `auroc` is that of all training prompts, scored in the same way.
    """

    weight: Tensor
    bias: float
    ordinary: Tensor
    auroc: float
    penalty: float

    def scores(self, features: Tensor) -> Tensor:
        """One number a prompt, float32 [prompts]."""
        return features.float() @ self.weight.to(features.device) + self.bias

    def threshold(self, false_positive_rate: float) -> float:
        """Above it a prompt counts as harmful.

        Of ordinary prompts like those of the training, at most this share lies above it, on average over such training
        sets (split conformal prediction, Vovk et al. 2005): the score of rank ceil((n + 1) * (1 - rate)).

        Raises:
            SafetyNeuronsError: there are too few ordinary prompts for so small a rate.
        """
        count = len(self.ordinary)
        check_rate(false_positive_rate, count)
        rank = math.ceil((count + 1) * (1 - false_positive_rate) - 1e-9)
        return float(self.ordinary[min(max(rank, 1), count) - 1])


def check_rate(false_positive_rate: float, ordinary: int) -> None:
    """Raises SafetyNeuronsError where so many ordinary prompts cannot give a threshold for this rate."""
    if not 0 < false_positive_rate < 1:
        raise SafetyNeuronsError(f"A false-positive rate is above 0 and below 1, not {false_positive_rate}.")
    if (ordinary + 1) * false_positive_rate < 1 - 1e-9:
        raise SafetyNeuronsError(
            f"A false-positive rate of {false_positive_rate:g} needs at least {math.ceil(1 / false_positive_rate) - 1} "
            f"ordinary prompts to learn from; there are {ordinary}. Name a higher rate or give more benign prompts."
        )


def fit_detector(
    harmful: Tensor, ordinary: Tensor, borderline: Tensor | None = None, *, penalties: Sequence[float] = PENALTIES
) -> Detector:
    """Fit a detector to features [prompts, features] of harmful prompts against ordinary and borderline ones.

    The penalty is the one with the best AUROC over five folds; equal ones go to the stronger.

    Raises:
        SafetyNeuronsError: there are no features, or fewer than five prompts on a side.
    """
    safe = ordinary if borderline is None else torch.cat([ordinary, borderline])
    if not harmful.shape[1]:
        raise SafetyNeuronsError("A detector needs features, and no neuron was chosen. Raise find.percent.")
    if min(len(harmful), len(ordinary)) < FOLDS:
        raise SafetyNeuronsError(f"A detector needs at least {FOLDS} harmful and {FOLDS} benign training prompts.")
    features = torch.cat([safe, harmful]).double().numpy()
    labels = numpy.r_[numpy.zeros(len(safe), dtype=int), numpy.ones(len(harmful), dtype=int)]
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    unseen, aurocs = {}, {}
    for penalty in sorted(penalties):
        unseen[penalty] = cross_val_predict(_model(penalty), features, labels, cv=folds, method="decision_function")
        aurocs[penalty] = float(roc_auc_score(labels, unseen[penalty]))
    best = max(aurocs, key=lambda penalty: (round(aurocs[penalty], 6), -penalty))
    fitted = _model(best).fit(features, labels)
    scaler, regression = fitted[0], fitted[1]
    weight = regression.coef_[0] / scaler.scale_
    bias = float(regression.intercept_[0] - weight @ scaler.mean_)
    return Detector(
        torch.from_numpy(weight).float(),
        bias,
        torch.from_numpy(numpy.sort(unseen[best][: len(ordinary)])).float(),
        aurocs[best],
        best,
    )


def _model(penalty: float) -> Pipeline:
    return make_pipeline(
        StandardScaler(), LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000, tol=1e-6)
    )
