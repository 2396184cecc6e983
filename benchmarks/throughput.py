"""How fast conversations are answered: the engine in this process beside plain batches of `generate`.

Run it alone: `python benchmarks/throughput.py`.
"""

import argparse
import functools
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from turns import ratio, take_turns

import safety_neurons
from safety_neurons.engines.engine import InProcess, answers
from safety_neurons.models.chat import ChatModel, Conversation
from safety_neurons.models.generate import batches_by_length
from safety_neurons.models.presets import DEFAULT_MODEL
from safety_neurons.models.tokens import padding_token
from safety_neurons.prompts import load_prompts

METHOD = """\
Both answer the same prompts greedily with the same limit and the same number of prompts a batch, and take turns in
every round; a cell is the median over the rounds of the ratio within a round, above 1 where the engine is faster. The
rival is transformers' `generate` on batches in the order in which the prompts come. Prompts: a third short ones of the
bundled sets, and two thirds that list 2 to 30 other questions first, as attacks with many examples do; in a random,
fixed order.
"""
BAR = 2.5
OTHERS = (0, 2, 30, 0, 8, 16)


@dataclass(frozen=True)
class Result:
    """How often the engine answers while the rival answers once, and what explains it."""

    prompts: int
    batch_size: int
    tokens: int
    shortest: int
    longest: int
    plain_padding: float
    sorted_padding: float
    time: float
    processor_time: float
    engine_seconds: float
    same: int


def mixed_prompts(count: int) -> list[str]:
    """Prompts of about 20 to 600 tokens with the template, in an order that is always the same."""
    texts = load_prompts("benign").texts
    asked = load_prompts("harmful").texts[: (count + 1) // 2] + texts[: count // 2]
    prompts = []
    for number, text in enumerate(asked):
        others = [texts[(number * 7 + other) % len(texts)] for other in range(OTHERS[number % len(OTHERS)])]
        lines = [f"{place}. {other}" for place, other in enumerate(others, 1)]
        prompts.append("\n".join(["Others asked this:", *lines, "", text]) if lines else text)
    random.Random(0).shuffle(prompts)
    return prompts


@torch.inference_mode()
def plain(model: ChatModel, texts: Sequence[str], max_new_tokens: int, batch_size: int) -> list[str]:
    """The answers of `generate` to batches in the order of the texts."""
    found: list[str] = []
    for start in range(0, len(texts), batch_size):
        inputs = model.encode(texts[start : start + batch_size])
        output = model.model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=padding_token(model)
        )
        found += model.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def padding(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """The share of the batches' tokens that only fill them up."""
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    return 1 - sum(lengths) / padded


def compare(model: ChatModel, count: int, max_new_tokens: int, batch_size: int, rounds: int) -> Result:
    """Both contenders on the same prompts."""
    conversations = [Conversation.of(prompt) for prompt in mixed_prompts(count)]
    texts = [model.render_conversation(conversation) for conversation in conversations]
    lengths = [len(ids) for ids in model.tokenizer(texts, add_special_tokens=False)["input_ids"]]
    found: dict[str, list[str]] = {}

    def engine() -> None:
        completions = answers(InProcess(model, batch_size), conversations, max_new_tokens=max_new_tokens)
        found["engine"] = [completion.text for completion in completions]

    def rival() -> None:
        found["plain"] = plain(model, texts, max_new_tokens, batch_size)

    spent = take_turns({"engine": engine, "plain": rival}, rounds)
    in_order = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    return Result(
        prompts=count,
        batch_size=batch_size,
        tokens=max_new_tokens,
        shortest=min(lengths),
        longest=max(lengths),
        plain_padding=padding(lengths, in_order),
        sorted_padding=padding(lengths, batches_by_length(texts, batch_size)),
        time=ratio(spent, "plain", "engine"),
        processor_time=ratio(spent, "plain", "engine", "processor"),
        engine_seconds=min(turn.wall for turn in spent["engine"]) / count,
        same=sum(one == other for one, other in zip(found["engine"], found["plain"], strict=True)),
    )


def table(results: Sequence[Result]) -> Table:
    """The ratios, red where they miss the bar."""
    result = Table(title="Above 1: the engine is faster", title_justify="left")
    for column in ("prompts", "a batch", "answer", "prompt tokens", "padding, plain", "padding, engine", "bar"):
        result.add_column(column, justify="right")
    for column in ("time", "processor time", "s an answer", "same answers"):
        result.add_column(column, justify="right")
    for row in results:
        ratios = [f"[{'green' if value >= BAR else 'red'}]{value:.2f}" for value in (row.time, row.processor_time)]
        result.add_row(
            str(row.prompts),
            str(row.batch_size),
            str(row.tokens),
            f"{row.shortest} to {row.longest}",
            f"{row.plain_padding:.0%}",
            f"{row.sorted_padding:.0%}",
            f"{BAR:.2f}",
            *ratios,
            f"{row.engine_seconds:.2f}",
            f"{row.same} of {row.prompts}",
        )
    return result


def main() -> None:
    """Read the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(
        description="Measure how fast conversations are answered.",
        epilog=METHOD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a preset or another model that can be loaded")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8], help="prompts a batch (default: 8)")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="tokens an answer at most (default: 32)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds in which the contenders take turns")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results to this file as well")
    options = parser.parse_args()
    model = safety_neurons.load(options.model)
    measure = functools.partial(compare, model, options.prompts, options.max_new_tokens, rounds=options.rounds)
    results = [measure(batch_size=size) for size in options.batch_sizes]
    Console().print(table(results))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in results], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
