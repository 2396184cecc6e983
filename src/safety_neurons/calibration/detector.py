"""A linear detector of harmful prompts: regularized logistic regression on activations at the prompt's last token."""

import functools
import itertools
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
from safety_neurons.core.numerals import rounded_up
from safety_neurons.core.progress import Advance, ignore
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import PromptPositions, follow_positions, forward
from safety_neurons.models.generate import batches_by_length, halve_when_full
from safety_neurons.models.neurons.hook_points import ActivationHook, Activations, HookPoint, activation_hooks
from safety_neurons.models.shared_prefix import share_prefix


class LastTokens:
    """Collects activations while a pass reads prompts: `values` is float32 [prompts, chosen neurons] by hook point.

    The neurons of a routed expert count as zero for a prompt whose last token is not routed to it.
    """

    def __init__(self, where: PromptPositions, chosen: Sequence[Tensor]) -> None:
        self.where, self.chosen = where, chosen
        *self.starts, self.size = itertools.accumulate(map(len, chosen), initial=0)
        self.values = torch.empty(0, self.size)
        self._pass: Tensor | None = None
        self._prompts: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def hooks(self, hook_points: Sequence[HookPoint]) -> Iterator[tuple[HookPoint, ActivationHook]]:
        """A hook for every hook point that has chosen neurons."""
        for number, (hook_point, indices) in enumerate(zip(hook_points, self.chosen, strict=True)):
            if len(indices):
                yield hook_point, functools.partial(self.take, number=number)

    def take(self, activations: Activations, number: int) -> None:
        """Store the activations of the chosen neurons of a hook point."""
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
        device = self.values.device
        self.values[prompts[:, None].to(device), places[None].to(device)] = values[rows][:, columns].float().to(device)

    def _begin(self, device: torch.device) -> None:
        """Start a new pass with zeros."""
        if self._pass is not self.where.offsets:
            self._pass = self.where.offsets
            self.values = torch.zeros(len(self.where.offsets), self.size, device=device)
            last = self._per_token().flatten().to(device)
            rows = (last >= 0).nonzero().flatten()
            self._prompts = last[rows], rows

    def _per_token(self) -> Tensor:
        """The number of the prompt at its last token, -1 at all other tokens: [prompts, tokens]."""
        offsets = self.where.offsets
        prompts = torch.arange(len(offsets), device=offsets.device)[:, None]
        return torch.where(offsets == -1, prompts, -1)


def last_token_activations(
    model: ChatModel, chosen: Sequence[Tensor], texts: Sequence[str], batch_size: int, advance: Advance = ignore
) -> Tensor:
    """The chosen neurons' activations at the last token of rendered texts: float32 [texts, chosen neurons]."""
    found = torch.zeros(len(texts), sum(map(len, chosen)))
    if not found.shape[1]:
        return found

    def run(batch: list[int]) -> None:
        with torch.inference_mode(), follow_positions(model.model, reach=1) as where:
            prompts = share_prefix(model.model, model.encode([texts[index] for index in batch]))
            gathered = LastTokens(where, chosen)
            with activation_hooks(gathered.hooks(model.hook_points)):
                # The head is skipped: no neuron depends on logits.
                forward(model.model.base_model, prompts.inputs, cache=prompts.cache)
            found[batch] = gathered.values.cpu()

    for batch in batches_by_length(texts, batch_size):
        halve_when_full(run, batch)
        advance(len(batch))
    return found


FOLDS = 5
# scikit-learn's C: smaller is stronger.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Detector:
    """Scores prompts by features: `features @ weight + bias`, higher is more harmful.

    `ordinary` are the sorted out-of-fold scores of the ordinary training prompts, which set the threshold; `auroc` is
    that of the out-of-fold scores of all training prompts.
    """

    weight: Tensor
    bias: float
    ordinary: Tensor
    auroc: float
    penalty: float

    def scores(self, features: Tensor) -> Tensor:
        """One score per prompt: float32 [prompts]."""
        return features.float() @ self.weight.to(features.device) + self.bias

    def threshold(self, false_positive_rate: float) -> float:
        """The score above which a prompt counts as harmful: the ordinary one of rank ceil((n + 1) * (1 - rate)).

        On average over training sets, at most this share of ordinary prompts like theirs is above it (split conformal
        prediction, Vovk et al. 2005).

        Raises:
            SafetyNeuronsError: there are too few ordinary prompts for this rate.
        """
        count = len(self.ordinary)
        check_rate(false_positive_rate, count)
        rank = math.ceil((count + 1) * (1 - false_positive_rate) - 1e-9)
        return float(self.ordinary[min(max(rank, 1), count) - 1])


def check_rate(false_positive_rate: float, ordinary: int) -> None:
    """Raise SafetyNeuronsError if this number of ordinary prompts is too small for a threshold at this rate."""
    if not 0 < false_positive_rate < 1:
        raise SafetyNeuronsError(
            f"false_positive_rate must be above 0 and below 1, not {false_positive_rate}. Correct it."
        )
    if (ordinary + 1) * false_positive_rate < 1 - 1e-9:
        raise SafetyNeuronsError(
            f"A false-positive rate of {false_positive_rate:g} needs at least {math.ceil(1 / false_positive_rate) - 1} "
            f"ordinary training prompts; there are {ordinary}. Raise false_positive_rate to "
            f"{rounded_up(1 / (ordinary + 1))}, or use more benign prompts (in a run: guard.prompts)."
        )


def check_prompts(harmful: int, ordinary: int) -> None:
    """Raise SafetyNeuronsError if these numbers of prompts are too small for cross-validation."""
    if min(harmful, ordinary) < FOLDS:
        raise SafetyNeuronsError(
            f"A detector needs at least {FOLDS} harmful and {FOLDS} benign training prompts, and there are {harmful} "
            f"and {ordinary}. Add prompts, or use larger sets."
        )


def fit_detector(
    harmful: Tensor, ordinary: Tensor, borderline: Tensor | None = None, *, penalties: Sequence[float] = PENALTIES
) -> Detector:
    """Fit a detector to features [prompts, features] of harmful prompts against ordinary and borderline ones.

    The penalty is the one with the best AUROC over five folds; ties go to the stronger.

    Raises:
        SafetyNeuronsError: there are no features, or fewer than five prompts on a side.
    """
    safe = ordinary if borderline is None else torch.cat([ordinary, borderline])
    if not harmful.shape[1]:
        raise SafetyNeuronsError(
            "A detector needs features, and no neuron was chosen. Choose more neurons (a larger percent)."
        )
    check_prompts(len(harmful), len(ordinary))
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
    scores = torch.from_numpy(numpy.sort(unseen[best][: len(ordinary)])).float()
    return Detector(torch.from_numpy(weight).float(), bias, scores, aurocs[best], best)


def _model(penalty: float) -> Pipeline:
    return make_pipeline(
        StandardScaler(), LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000, tol=1e-6)
    )
