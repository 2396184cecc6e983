"""A run's guard, tested: as a detector beside others, and in action."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from safety_neurons.calibration.detector import last_token_activations
from safety_neurons.calibration.guard import Guard, guard
from safety_neurons.core.files import fingerprint
from safety_neurons.core.progress import Advance, Listener
from safety_neurons.core.statistics import CONFIDENCE, RESAMPLES
from safety_neurons.experiments.intervention import share
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import forward
from safety_neurons.models.generate import batches_by_length, halve_when_full
from safety_neurons.models.likelihood import READ_AT_ONCE, surprise_by_token
from safety_neurons.models.weights import file_sha256
from safety_neurons.prompts import Prompt
from safety_neurons.runs.answers import Condition
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.guard import Learnt, fit_and_keep
from safety_neurons.runs.opened import keep_section, opened, prompts_to_test

FALSE_POSITIVE_RATES = (0.01, 0.05)


def guard_run(
    path: Path,
    given: Mapping[str, Any] | None = None,
    *,
    on: Sequence[str] = (),
    answers: bool = True,
    listener: Listener | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Fit a guard on a run's training prompts, keep it, and test it; the section "guard" of the run's results.

    Tested are the run's test split, unsafe twins of its borderline prompts against these, and the pairs `on`. As a
    detector it stands beside the found neurons of all layers, as many random ones, the last hidden state, and the
    prompt's perplexity.

    Args:
        given: settings that override the run's own.
        on: further HARMFUL:BENIGN pairs of prompt sets.
        answers: also let the guarded model answer.

    Raises:
        SafetyNeuronsError: bad input, or a failure that the message explains.
    """
    with opened(path, given, listener, command, on=on) as work:
        settings = work.settings
        tests = {name or "test": prompts_to_test(work, name) for name in (None, *on)}
        tests["contrast"] = {
            "harmful": work.chosen("contrast", "test", settings.evaluate.prompts),
            "benign": work.chosen("borderline", "test", settings.evaluate.prompts),
        }
        fitted, learnt, doses = fit_and_keep(work)
        detected = _detect(work, fitted, learnt, tests)
        section = {
            "layer": fitted.layer,
            "deciding_neurons": sum(map(len, fitted.deciding)),
            "false_positive_rate": fitted.false_positive_rate,
            "threshold": fitted.threshold,
            "penalty": fitted.detector.penalty,
            "learnt": {
                "harmful": len(learnt.harmful),
                "benign": len(learnt.benign),
                "borderline": len(learnt.borderline),
            },
            "neurons": len(fitted.neurons),
            "alpha": fitted.alpha,
            "doses": [dose._asdict() for dose in doses],
            "knobs": fitted.knobs.but_alphas(),
            "detectors": detected,
            "rows": _in_action(work, fitted, tests) if answers else [],
        }
        return keep_section(work.folder, "guard", section)


def _detect(
    work: RunContext, fitted: Guard, learnt: Learnt, tests: Mapping[str, dict[str, list[Prompt]]]
) -> list[dict[str, Any]]:
    """Each detector on each test. Every prompt is read once, however many detectors and tests want it."""
    asked = {
        prompt.text: work.model.render(prompt.text)
        for sets in tests.values()
        for own in sets.values()
        for prompt in own
    }
    texts = list(dict.fromkeys([*learnt.all, *asked.values()]))
    row_of = {text: row for row, text in enumerate(texts)}

    def rows(features: Tensor, wanted: Sequence[str]) -> Tensor:
        return features[[row_of[text] for text in wanted]]

    found, random = fitted.neurons.both, fitted.neurons.random_like(work.settings.seed + 1).both
    with work.listener.task("reading prompts for the detectors", 3 * len(texts)) as advance:
        join_processes = [torch.cat(pair) for pair in zip(found, random, strict=True)]
        neurons = last_token_activations(work.model, join_processes, texts, work.settings.batch_size, advance)
        hidden = _batched(work.model, texts, _last_hidden, work.settings.batch_size, advance)
        nll = _batched(work.model, texts, _surprise, READ_AT_ONCE, advance)
    mine = torch.cat([torch.arange(len(one) + len(other)) < len(one) for one, other in zip(found, random, strict=True)])
    early = torch.cat(
        [
            torch.full((len(one),), layer <= fitted.layer)
            for layer, one in zip(fitted.neurons.layers, found, strict=True)
        ]
    )

    def fit(features: Tensor) -> Tensor:
        return learnt.fit(rows(features, learnt.all)).scores(features)

    scores = {
        f"guard (found neurons to layer {fitted.layer})": fitted.detector.scores(neurons[:, mine][:, early]),
        "found neurons of all layers": fit(neurons[:, mine]),
        "random neurons of all layers": fit(neurons[:, ~mine]),
        "last hidden state": fit(hidden),
        "perplexity of the prompt": nll.flatten(),
    }
    result = []
    for name, all_scores in scores.items():
        threshold = fitted.threshold if name.startswith("guard") else None
        for test, sets in tests.items():
            sides = [rows(all_scores, [asked[prompt.text] for prompt in sets[side]]) for side in ("harmful", "benign")]
            result.append({"detector": name, "on": test} | described(sides[0], sides[1], threshold, work.settings.seed))
    return result


def described(harmful: Tensor, benign: Tensor, threshold: float | None, seed: int) -> dict[str, Any]:
    """AUROC and true-positive rates at fixed false-positive rates of this very test, with bootstrap intervals.

    With a threshold that was set beforehand, also what share of either side lies above it.
    """
    sides = [side.double().cpu().numpy() for side in (harmful, benign)]
    value = _measures(sides)
    drawn = numpy.random.default_rng(seed)
    samples = [_measures([drawn.choice(side, len(side)) for side in sides]) for _ in range(RESAMPLES // 4)]
    tail = (1 - CONFIDENCE) / 2
    found: dict[str, Any] = {"harmful": len(sides[0]), "benign": len(sides[1])}
    for name in value:
        low, high = numpy.quantile([sample[name] for sample in samples], [tail, 1 - tail])
        found[name] = {"value": value[name], "low": float(low), "high": float(high)}
    if threshold is not None:
        found["flagged_harmful"], found["flagged_benign"] = (share((side > threshold).tolist()) for side in sides)
    return found


def _measures(sides: Sequence[numpy.ndarray]) -> dict[str, float]:
    labels = numpy.r_[numpy.ones(len(sides[0])), numpy.zeros(len(sides[1]))]
    scores = numpy.concatenate(sides)
    false, true, _ = roc_curve(labels, scores)
    rates = {f"tpr_at_{rate:g}": float(true[false <= rate].max()) for rate in FALSE_POSITIVE_RATES}
    return {"auroc": float(roc_auc_score(labels, scores)), **rates}


def _batched(
    model: ChatModel,
    texts: Sequence[str],
    read: Callable[[ChatModel, list[str]], Tensor],
    batch_size: int,
    advance: Advance,
) -> Tensor:
    """What `read` makes of rendered requests, [requests, ...]."""
    found: dict[int, Tensor] = {}

    def run(batch: list[int]) -> None:
        found.update(zip(batch, read(model, [texts[index] for index in batch]), strict=True))

    for batch in batches_by_length(texts, batch_size):
        halve_when_full(run, batch)
        advance(len(batch))
    return torch.stack([found[index] for index in range(len(texts))])


def _last_hidden(model: ChatModel, texts: list[str]) -> Tensor:
    """The last layer's hidden state at the last token, after the final norm: float32 [texts, hidden]."""
    with torch.inference_mode():
        hidden: Tensor = forward(model.model.base_model, model.encode(texts)).last_hidden_state
    return hidden[:, -1].float().cpu()


def _surprise(model: ChatModel, texts: list[str]) -> Tensor:
    """Nats per token of the rendered requests: float32 [texts, 1]."""
    return torch.stack([nats.mean().cpu() for nats in surprise_by_token(model, model.encode(texts))])[:, None]


def _in_action(work: RunContext, fitted: Guard, tests: Mapping[str, dict[str, list[Prompt]]]) -> list[dict[str, Any]]:
    """What the model answers without and with the guard; shares of all prompts."""
    guarded = Condition("guarded", "guard", fingerprint(work.answering, file_sha256(work.folder.guard)))
    rows = []
    for test, sets in tests.items():
        for side, prompts in sets.items():
            row: dict[str, Any] = {"on": test, "prompts": side, "n": len(prompts)}
            for condition in (work.base(), guarded):
                with guard(work.model, fitted) if condition is guarded else nullcontext():
                    answers = work.ask(condition, side, prompts)
                verdicts = [answer.verdict for answer in answers]
                row[condition.subject] = {
                    "refused": share([verdict == "refused" for verdict in verdicts]),
                    "answered": share([verdict == "complied" for verdict in verdicts]),
                    "unscored": verdicts.count("unscored"),
                }
            rows.append(row)
    return rows
