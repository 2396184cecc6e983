"""What calibration and the guard cost while a model generates, and whether they are exact.

Run it alone: `python benchmarks/calibrate.py`. Every number is a ratio of two measurements of one run.
"""

import argparse
import contextlib
import functools
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from turns import ratio, take_turns

import safety_neurons
from safety_neurons.calibration.calibration import calibrate
from safety_neurons.calibration.guard import Guard, fit_guard, guard
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.presets import DEFAULT_MODEL
from safety_neurons.neurons.find import find
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.prompts import load_prompts

METHOD = """\
All contenders generate the same number of tokens from the same benign prompts, greedily, and take turns in every round,
in a changing order; a cell is the median over the rounds of the ratio within a round. Exactness is checked on the same
model before anything is timed; rounding may let a cached and an uncached pass choose another token, so that what is
compared are the logits of the first tokens.
"""
BAR = 1.02
Context = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Row:
    """One ratio over plain `generate`, with the bar that it must not exceed."""

    what: str
    batch: int
    tokens: int
    bar: float
    wall: float
    processor: float


def contenders(model: ChatModel, neurons: NeuronSet, fitted: Guard) -> dict[str, Context]:
    """What is open while the model generates."""

    def calibrated(**overrides: Any) -> Context:
        return functools.partial(calibrate, model, neurons, toward="conformity", alpha=2.0, **overrides)

    return {
        "plain": contextlib.nullcontext,
        "calibrated prompt": calibrated(),
        "calibrated prompt and 4 tokens": calibrated(generated_tokens=4),
        "calibrated prompt and all tokens": calibrated(generated_tokens="all"),
        "guard, benign prompts": functools.partial(guard, model, fitted),
    }


def generate(model: ChatModel, texts: list[str], tokens: int, context: Context, use_cache: bool = True) -> Any:
    """Exactly so many tokens, with their logits."""
    inputs = model.encode(texts)
    with torch.inference_mode(), context():
        return model.model.generate(
            **inputs,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            use_cache=use_cache,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=model.tokenizer.eos_token_id,
        )


def exactness(model: ChatModel, neurons: NeuronSet, fitted: Guard, texts: list[str]) -> dict[str, float]:
    """The largest difference of logits over the first four tokens; 0 is equal bits."""

    def logits(given: list[str], context: Context, use_cache: bool = True) -> Tensor:
        return torch.stack(generate(model, given, 4, context, use_cache).logits, 1).float()

    overrides: dict[str, Any] = {"toward": "conformity", "generated_tokens": 2}
    pushed = functools.partial(calibrate, model, neurons, alpha=2.0, **overrides)
    still = functools.partial(calibrate, model, neurons, alpha=0.0, **overrides)
    guarded = functools.partial(guard, model, fitted)
    plain, moved = logits(texts, contextlib.nullcontext), logits(texts, pushed)
    single = torch.cat([logits([text], pushed) for text in texts])
    bare_single = torch.cat([logits([text], contextlib.nullcontext) for text in texts])

    def largest(one: Tensor, other: Tensor) -> float:
        return float((one - other).abs().max())

    return {
        "alpha 0 - base": largest(logits(texts, still), plain),
        "guard on benign prompts - base": largest(logits(texts, guarded), plain),
        "calibrated: cached - uncached": largest(moved, logits(texts, pushed, use_cache=False)),
        "base: cached - uncached": largest(plain, logits(texts, contextlib.nullcontext, use_cache=False)),
        "calibrated: batched - single": largest(moved, single),
        "base: batched - single": largest(plain, bare_single),
        "calibrated - base": largest(moved, plain),
    }


def measure(model_name: str, batches: list[int], tokens: int, rounds: int) -> tuple[list[Row], dict[str, float]]:
    """All ratios, and what the exactness checks found."""
    model = safety_neurons.load(model_name)
    harmful, benign, borderline = (load_prompts(name) for name in ("harmful", "benign", "borderline"))
    train = [found.split("train").texts for found in (harmful, benign, borderline)]
    neurons = find(model, train[0], train[1], score="write-contrast", percent=0.5)
    fitted = fit_guard(model, neurons, train[0], train[1], generated_tokens=0)
    scores = fitted.scores(model, benign.split("test").texts)
    quiet = [text for text, score in zip(benign.split("test").texts, scores, strict=True) if score <= fitted.threshold]
    texts = [model.render(text) for text in quiet]
    found = exactness(model, neurons, fitted, texts[:4])
    rows = []
    for batch in batches:
        works = {
            name: functools.partial(generate, model, texts[:batch], tokens, context)
            for name, context in contenders(model, neurons, fitted).items()
        }
        works["plain"]()
        spent = take_turns(works, rounds)
        for name in list(works)[1:]:
            clocks = (ratio(spent, name, "plain", clock) for clock in ("wall", "processor"))
            rows.append(Row(name, batch, tokens, BAR, *clocks))
    return rows, found


def table(rows: list[Row]) -> Table:
    """The ratios, red where they miss the bar."""
    result = Table(title="Generating, over plain generate: below 1 is faster", title_justify="left")
    for column in ("what", "batch", "new tokens", "bar", "wall clock", "processor time"):
        result.add_column(column, justify="left" if column == "what" else "right")
    for row in rows:
        cells = [f"[{'red' if value > row.bar else 'green'}]{value:.3f}" for value in (row.wall, row.processor)]
        result.add_row(row.what, str(row.batch), str(row.tokens), f"{row.bar:.2f}", *cells)
    return result


def main() -> None:
    """Read the command line, measure, and print the tables."""
    parser = argparse.ArgumentParser(
        description="Measure what calibration costs.",
        epilog=METHOD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a preset, a hub id, a folder or a .gguf file")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="prompts that are answered together")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens for each prompt")
    parser.add_argument("--rounds", type=int, default=7, help="rounds in which the contenders take turns")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers to this file as well")
    options = parser.parse_args()
    rows, exact = measure(options.model, options.batches, options.tokens, options.rounds)
    console = Console()
    console.print(table(rows))
    for name, difference in exact.items():
        console.print(f"{name}: largest difference of logits {difference:.3g}")
    if options.json:
        content = {"rows": [asdict(row) for row in rows], "exactness": exact}
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
