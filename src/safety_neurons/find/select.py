"""From scores to sets: the top k percent, per layer or over the model, and what sets the two sides apart."""

from collections.abc import Sequence

import torch
from torch import Tensor

from safety_neurons.errors import SafetyNeuronsError


def check_budget(percent: float, scope: str, selection: str = "difference") -> None:
    """Raises SafetyNeuronsError where a selection has no meaning."""
    if not 0 < percent <= 100:
        raise SafetyNeuronsError(f"The budget must be above 0 and at most 100 percent of the neurons, not {percent}.")
    if scope not in ("layer", "model"):
        raise SafetyNeuronsError(f"The budget is spent per 'layer' or over the 'model', not per {scope!r}.")
    if selection not in ("difference", "none"):
        raise SafetyNeuronsError(
            f"The selection is the 'difference' of both sides or 'none' (harmful prompts alone), not {selection!r}."
        )


def top_percent(scores: Sequence[Tensor], percent: float, scope: str, layers: Sequence[int]) -> list[Tensor]:
    """Masks of the neurons with the highest scores, per site; `layers` says in which layer each site stands.

    Negative scores are never chosen; ties go to the lower index.
    """
    check_budget(percent, scope)
    masks: list[Tensor] = [torch.empty(0)] * len(scores)
    for group in dict.fromkeys(layers) if scope == "layer" else [None]:
        mine = [site for site, layer in enumerate(layers) if group is None or layer == group]
        flat = _top(torch.cat([scores[site] for site in mine]), percent)
        for site, mask in zip(mine, flat.split([len(scores[site]) for site in mine]), strict=True):
            masks[site] = mask
    return masks


def _top(scores: Tensor, percent: float) -> Tensor:
    count = max(1, round(len(scores) * percent / 100))
    order = scores.sort(descending=True, stable=True).indices[:count]
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[order] = True
    return mask & (scores >= 0)


def select(
    harmful: Sequence[Tensor],
    benign: Sequence[Tensor],
    percent: float,
    scope: str,
    contrastive: bool,
    layers: Sequence[int],
    selection: str = "difference",
) -> tuple[list[Tensor], list[Tensor]]:
    """Masks of the rejection and the conformity neurons, per site.

    For scores that rank each side by itself: top-k on harmful minus top-k on benign, and the other way round
    (the paper, section 3.1). For contrastive scores: one top-k over both sides. With the selection "none": the top-k
    on harmful prompts alone, and no conformity neurons.
    """
    check_budget(percent, scope, selection)
    if selection == "none":
        alone = top_percent(harmful, percent, scope, layers)
        return alone, [torch.zeros_like(mask) for mask in alone]
    if contrastive:
        chosen = top_percent(
            [torch.maximum(*pair) for pair in zip(harmful, benign, strict=True)], percent, scope, layers
        )
        rejection = [mask & (side >= 0) for mask, side in zip(chosen, harmful, strict=True)]
        conformity = [mask & (side >= 0) for mask, side in zip(chosen, benign, strict=True)]
        return rejection, conformity
    top_harmful, top_benign = (top_percent(side, percent, scope, layers) for side in (harmful, benign))
    rejection = [mine & ~other for mine, other in zip(top_harmful, top_benign, strict=True)]
    conformity = [mine & ~other for mine, other in zip(top_benign, top_harmful, strict=True)]
    return rejection, conformity
