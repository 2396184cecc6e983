"""A linear detector of harmful prompts: regularised logistic regression, and a threshold for a false-positive rate.

The activations of chosen neurons at each prompt's last token: what a guard decides by."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Advance, ignore
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import PromptPositions, follow_positions, forward
from safety_neurons.models.generate import batches_by_length, halve_when_full
from safety_neurons.models.neurons.hook_points import ActivationHook, Activations, HookPoint, activation_hooks


class LastTokens:
    """Gathers activations while a pass reads prompts: `values` is float32 [prompts, chosen neurons], site after site.

    A routed expert's neurons count as zero for a prompt whose last token does not reach the expert.
    """

    def __init__(self, where: PromptPositions, chosen: Sequence[Tensor]) -> None:
        self.where, self.chosen = where, chosen
        starts = [0]
        for indices in chosen:
            starts.append(starts[-1] + len(indices))
        self.starts, self.size = starts, starts[-1]
        self.values = torch.empty(0, self.size)
        self._pass: Tensor | None = None
        self._prompts: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def hooks(self, hook_points: Sequence[HookPoint]) -> Iterator[tuple[HookPoint, ActivationHook]]:
        """A hook for every site that holds chosen neurons."""
        for number, (hook_point, indices) in enumerate(zip(hook_points, self.chosen, strict=True)):
            if len(indices):
                yield hook_point, functools.partial(self.take, number=number)

    def take(self, activations: Activations, number: int) -> None:
        """Keep what these activations hold of the chosen neurons of a site."""
        if self.where.generated is not None:
            return
        self._begin(activations.values.device)
        values, first = activations.values, activations.first
        indices = self.chosen[number]
        mine = (indices >= first) & (indices < first + values.shape[1])
        if activations.tokens is None:
            prompts, rows = self._prompts
        else:
            last = activations.of_tokens(self._per_token()).to(values.device)
            rows = (last >= 0).nonzero().flatten()
            prompts = last[rows]
        if not len(rows) or not mine.any():
            return
        columns = (indices[mine] - first).to(values.device)
        places = (self.starts[number] + mine.nonzero().flatten()).to(values.device)
        found = values[rows][:, columns].float()
        self.values[prompts[:, None].to(self.values.device), places[None].to(self.values.device)] = found.to(
            self.values.device
        )

    def _begin(self, device: torch.device) -> None:
        """A pass that has not been seen begins with zeros."""
        if self._pass is not self.where.offsets:
            self._pass = self.where.offsets
            self.values = torch.zeros(len(self.where.offsets), self.size, device=device)
            last = self._per_token().flatten().to(device)
            rows = (last >= 0).nonzero().flatten()
            self._prompts = last[rows], rows

    def _per_token(self) -> Tensor:
        """The prompt whose last token each token is, or -1: [prompts, tokens]."""
        offsets = self.where.offsets
        prompts = torch.arange(len(offsets), device=offsets.device)[:, None]
        return torch.where(offsets == -1, prompts, -1)


def last_token_activations(
    model: ChatModel,
    chosen: Sequence[Tensor],
    texts: Sequence[str],
    batch_size: int,
    advance: Advance = ignore,
) -> Tensor:
    """The chosen neurons' activations at the last token of rendered texts: float32 [texts, chosen neurons]."""
    found = torch.zeros(len(texts), sum(map(len, chosen)))
    if not found.shape[1]:
        return found

    def run(batch: list[int]) -> None:
        with torch.inference_mode(), follow_positions(model.model) as where:
            gathered = LastTokens(where, chosen)
            with activation_hooks(gathered.hooks(model.hook_points)):
                # Without the head: no neuron looks at logits.
                forward(model.model.base_model, model.encode([texts[index] for index in batch]))
            found[batch] = gathered.values.cpu()

    for batch in batches_by_length(texts, batch_size):
        halve_when_full(run, batch)
        advance(len(batch))
    return found


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
