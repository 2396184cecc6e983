"""Fit a run's guard and test it: as a detector next to other detectors, and by the answers of the guarded model."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from safety_neurons.calibration.detector import last_token_activations
from safety_neurons.calibration.guard import Guard, guard
from safety_neurons.core.progress import Advance, Listener
from safety_neurons.core.statistics import RESAMPLES, percentile_interval, share
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import forward
from safety_neurons.models.generate import in_batches
from safety_neurons.models.likelihood import READ_AT_ONCE, nll_by_token
from safety_neurons.prompts import Prompt
from safety_neurons.report.results import RunResults
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.guard import DetectorRequests, fit_and_keep
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
) -> RunResults:
    """Fit a guard on a run's training prompts, keep it in the run's folder, and test it. Runs missing stages first.

    Tests on the run's test split, on its borderline prompts against their unsafe matched pairs, and on the pairs `on`.
    The other detectors read the found neurons of all layers, the same number of random neurons, the last hidden state,
    and the perplexity of the prompt. Returns the run's results, with the section "guard".

    Args:
        given: settings that override the run's own.
        on: more HARMFUL:BENIGN pairs of prompt sets.
        answers: whether to let the guarded model answer, too.

    Raises:
        SafetyNeuronsError: bad input, or a failure that the message explains.
    """
    with opened(path, given, listener, command, on=on) as run:
        settings = run.settings
        tests = {name or "test": prompts_to_test(run, name) for name in (None, *on)}
        tests["contrast"] = {
            "harmful": run.split("contrast", "test", settings.evaluate.prompts),
            "benign": run.split("borderline", "test", settings.evaluate.prompts),
        }
        fitted, learned, doses = fit_and_keep(run)
        section = {
            "digest": fitted.digest,
            "layer": fitted.layer,
            "deciding_neurons": sum(map(len, fitted.deciding)),
            "false_positive_rate": fitted.false_positive_rate,
            "threshold": fitted.threshold,
            "penalty": fitted.detector.penalty,
            "fitted_on": {name: len(requests) for name, requests in vars(learned).items()},
            "neurons": len(fitted.neurons),
            "alpha": fitted.alpha,
            "doses": [dose._asdict() for dose in doses],
            "calibration": fitted.calibration.but_alphas(),
            "detectors": _compare_detectors(run, fitted, learned, tests),
            "rows": _compare_answers(run, fitted, tests) if answers else [],
        }
        return keep_section(run, "guard", section)


def _compare_detectors(
    run: RunContext, fitted: Guard, learned: DetectorRequests, tests: Mapping[str, dict[str, list[Prompt]]]
) -> list[dict[str, Any]]:
    """Every detector on every test; each prompt is read once for all of them."""
    prompts = [prompt.text for sets in tests.values() for side in sets.values() for prompt in side]
    asked = {prompt: run.model.render(prompt) for prompt in prompts}
    texts = list(dict.fromkeys([*learned.all, *asked.values()]))
    row_of = {text: row for row, text in enumerate(texts)}

    def rows(features: Tensor, wanted: Sequence[str]) -> Tensor:
        return features[[row_of[text] for text in wanted]]

    def fit(features: Tensor) -> Tensor:
        return learned.fit(rows(features, learned.all)).scores(features)

    found, random = fitted.neurons.both, fitted.neurons.random_like(run.settings.seed + 1).both
    with run.listener.task("reading prompts for the detectors", 3 * len(texts)) as advance:
        both = [torch.cat(pair) for pair in zip(found, random, strict=True)]
        activations = last_token_activations(run.model, both, texts, run.settings.batch_size, advance)
        hidden = _batched(run.model, texts, _last_hidden, run.settings.batch_size, advance)
        nll = _batched(run.model, texts, _mean_nll, READ_AT_ONCE, advance)
    pairs = list(zip(fitted.neurons.layers, found, random, strict=True))
    # In each layer the found neurons come before the random ones.
    is_found = torch.cat([torch.arange(len(one) + len(other)) < len(one) for _, one, other in pairs])
    layer_of = torch.cat([torch.full((len(one),), layer) for layer, one, _ in pairs])
    scores = {
        f"guard (found neurons to layer {fitted.layer})": fitted.detector.scores(
            activations[:, is_found][:, layer_of <= fitted.layer]
        ),
        "found neurons of all layers": fit(activations[:, is_found]),
        "random neurons of all layers": fit(activations[:, ~is_found]),
        "last hidden state": fit(hidden),
        "perplexity of the prompt": nll.flatten(),
    }
    result = []
    for name, all_scores in scores.items():
        threshold = fitted.threshold if name.startswith("guard") else None
        for test, sets in tests.items():
            harmful, benign = (
                rows(all_scores, [asked[prompt.text] for prompt in sets[side]]) for side in ("harmful", "benign")
            )
            result.append({"detector": name, "on": test} | described(harmful, benign, threshold, run.settings.seed))
    return result


def described(harmful: Tensor, benign: Tensor, threshold: float | None, seed: int) -> dict[str, Any]:
    """AUROC, and true-positive rates at false-positive rates that are set on this test, with bootstrap intervals.

    With a threshold that was set beforehand, also the fraction of each side that is flagged.
    """
    sides = [side.double().cpu().numpy() for side in (harmful, benign)]
    measured = _roc(sides)
    generator = numpy.random.default_rng(seed)
    samples = [_roc([generator.choice(side, len(side)) for side in sides]) for _ in range(RESAMPLES // 4)]
    found: dict[str, Any] = {"harmful": len(sides[0]), "benign": len(sides[1])}
    for name, value in measured.items():
        low, high = percentile_interval([sample[name] for sample in samples])
        found[name] = {"value": value, "low": low, "high": high}
    if threshold is not None:
        for name, side in zip(("flagged_harmful", "flagged_benign"), sides, strict=True):
            found[name] = asdict(share((side > threshold).tolist()))
    return found


def _roc(sides: Sequence[numpy.ndarray]) -> dict[str, float]:
    labels = numpy.r_[numpy.ones(len(sides[0])), numpy.zeros(len(sides[1]))]
    scores = numpy.concatenate(sides)
    false, true, _ = roc_curve(labels, scores)
    rates = {f"tpr_at_{limit:g}": float(true[false <= limit].max()) for limit in FALSE_POSITIVE_RATES}
    return {"auroc": float(roc_auc_score(labels, scores)), **rates}


def _batched(
    model: ChatModel,
    texts: Sequence[str],
    read: Callable[[ChatModel, list[str]], Tensor],
    batch_size: int,
    advance: Advance,
) -> Tensor:
    """The features that `read` computes from rendered requests: [requests, features]."""

    def read_batch(batch: list[int]) -> list[Tensor]:
        return list(read(model, [texts[index] for index in batch]))

    return torch.stack(in_batches(texts, batch_size, read_batch, advance))


def _last_hidden(model: ChatModel, texts: list[str]) -> Tensor:
    """The last layer's hidden state at the last token, after the final norm: float32 [texts, hidden]."""
    with torch.inference_mode():
        hidden: Tensor = forward(model.model.base_model, model.encode(texts)).last_hidden_state
    return hidden[:, -1].float().cpu()


def _mean_nll(model: ChatModel, texts: list[str]) -> Tensor:
    """Negative log-likelihood of the rendered requests in nats per token: float32 [texts, 1]."""
    return torch.stack([nats.mean().cpu() for nats in nll_by_token(model, model.encode(texts))])[:, None]


def _compare_answers(
    run: RunContext, fitted: Guard, tests: Mapping[str, dict[str, list[Prompt]]]
) -> list[dict[str, Any]]:
    """The verdicts on the model's answers without and with the guard, as fractions of all prompts."""
    engines = {"base": run.engine, "guarded": run.engine.under(f"guard {fitted.digest}")}
    rows = []
    for test, sets in tests.items():
        for side, prompts in sets.items():
            row: dict[str, Any] = {"on": test, "prompts": side, "n": len(prompts)}
            for subject, engine in engines.items():
                with guard(run.model, fitted) if subject == "guarded" else nullcontext():
                    answers = run.ask(prompts, f"{subject}: {side} prompts of {test}", engine=engine)
                verdicts = [answer.verdict for answer in answers]
                row[subject] = {
                    "refused": asdict(share([verdict == "refused" for verdict in verdicts])),
                    "answered": asdict(share([verdict == "complied" for verdict in verdicts])),
                    "unscored": verdicts.count("unscored"),
                }
            rows.append(row)
    return rows
