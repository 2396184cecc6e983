"""What finding costs beside the forward passes that it needs, and beside other libraries that read activations.

Run it alone: `python benchmarks/find.py`. To compare with nnsight and TransformerLens, run it with an interpreter that
has them: `pip install nnsight transformer-lens`.
"""

import argparse
import copy
import functools
import importlib.util
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from memory import in_fresh_process, mebibytes, peak_while
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel
from turns import Spent, ratio, take_turns

import safety_neurons
from safety_neurons.cli.console import errors
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import forward
from safety_neurons.models.generate import BATCH_SIZE, batches_by_length
from safety_neurons.models.presets import DEFAULT_MODEL
from safety_neurons.neurons.capture import capture_sums
from safety_neurons.neurons.find import find
from safety_neurons.prompts import load_prompts

METHOD = """\
Time: all contenders take turns in every round, in a changing order, on the same batches; a cell is the median over the
rounds of the ratio within a round. Processor time is that of all threads, and is less disturbed by other programs.
Memory: the peak above what the loaded model takes after one short warm-up, each contender in a process of its own.
The rivals run forward passes over whole prompts with logits for the last token alone; one row stops nnsight after the
last activation. find and capture need no logits, and read what the prompts share once, except for all tokens.
"""
FEW, MANY = 64, 2048
# What "flat" allows for: the interpreter's own small objects, among them the texts.
FLAT = 1.05
RIVALS = {"nnsight": "nnsight", "nnsight, stopped": "nnsight", "TransformerLens": "transformer_lens"}
Work = Callable[[Sequence[str], Sequence[str]], Any]


@dataclass(frozen=True)
class Row:
    """One line of the table: `of` over `over`, with the bar that the ratio must not exceed."""

    of: str
    over: str
    bar: float
    time: float | None = None
    processor_time: float | None = None
    memory: float | None = None
    note: str = ""


def batches(model: ChatModel, texts: Sequence[str]) -> Iterator[BatchEncoding]:
    """The batches that `capture` makes of these texts."""
    for batch in batches_by_length(texts, BATCH_SIZE):
        yield model.encode([texts[index] for index in batch])


def pass_options(inputs: BatchEncoding) -> dict[str, Any]:
    """What `safety_neurons.models.forward.forward` hands to a Llama-like model beside its input."""
    mask = inputs["attention_mask"]
    assert isinstance(mask, Tensor)
    return {"position_ids": (mask.cumsum(1) - 1).clamp_min(0), "logits_to_keep": 1, "use_cache": False}


def own_modules(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in other modules: libraries that change a model's modules leave the other contenders alone."""
    return copy.deepcopy(model, {id(held): held for held in itertools.chain(model.parameters(), model.buffers())})


def bare(model: ChatModel) -> Work:
    """The forward passes alone."""

    @torch.inference_mode()
    def work(harmful: Sequence[str], benign: Sequence[str]) -> None:
        for texts in (harmful, benign):
            for inputs in batches(model, [model.render(text) for text in texts]):
                forward(model.model, inputs)

    return work


def finding(model: ChatModel) -> Work:
    """All of `find` with a score that needs no gradients."""
    return lambda harmful, benign: find(model, harmful, benign, score="write-contrast")


def finding_by_gradient(model: ChatModel) -> Work:
    """All of `find` with the default score."""
    return lambda harmful, benign: find(model, harmful, benign, score="gradient")


def capturing(model: ChatModel, **options: Any) -> Work:
    """Statistics of all neurons."""
    return lambda *sides: [
        capture_sums(model, [model.render(text) for text in texts], **options).statistics().mean for texts in sides
    ]


def unrendered(model: ChatModel) -> Work:
    """Statistics of all neurons over bare texts, without the chat template's tokens: many prompts in little time."""
    return lambda *sides: capture_sums(model, [*itertools.chain(*sides)], positions=5).statistics()


def nnsight(model: ChatModel, stop: bool = False) -> Work:
    """Means at the last token with nnsight, each layer reduced as soon as it is there."""
    from nnsight import TransformersModel, save

    traced = TransformersModel(own_modules(model.model), tokenizer=model.tokenizer, task="text-generation")

    @torch.inference_mode()
    def means(texts: Sequence[str]) -> list[Tensor]:
        total: list[Tensor] | None = None
        for inputs in batches(model, [model.render(text) for text in texts]):
            with traced.trace(dict(inputs), **pass_options(inputs)) as tracer:
                sums = save([layer.mlp.down_proj.input[:, -1].sum(0) for layer in traced.model.layers])
                if stop:
                    tracer.stop()
            total = sums if total is None else [old + new for old, new in zip(total, sums, strict=True)]
        assert total is not None
        return [layer / len(texts) for layer in total]

    return lambda *sides: [means(texts) for texts in sides]


def transformer_lens(model: ChatModel) -> Work:
    """Means at the last token with TransformerLens, each layer reduced as soon as it is there."""
    from transformer_lens.model_bridge import TransformerBridge

    network = own_modules(model.model)
    bridge = TransformerBridge.boot_transformers(
        network.config.name_or_path, hf_model=network, tokenizer=model.tokenizer, dtype=network.dtype
    )
    layers = network.config.num_hidden_layers

    @torch.inference_mode()
    def means(texts: Sequence[str]) -> list[Tensor]:
        total = [torch.zeros(())] * layers

        def reduce(values: Tensor, hook: Any) -> None:
            total[hook.layer()] = total[hook.layer()] + values[:, -1].sum(0)

        hooks = [(f"blocks.{layer}.mlp.hook_post", reduce) for layer in range(layers)]
        for inputs in batches(model, [model.render(text) for text in texts]):
            mask = inputs["attention_mask"]
            bridge.run_with_hooks(inputs["input_ids"], fwd_hooks=hooks, attention_mask=mask, **pass_options(inputs))
        return [layer / len(texts) for layer in total]

    return lambda *sides: [means(texts) for texts in sides]


CONTENDERS: dict[str, Callable[[ChatModel], Work]] = {
    "forward pass": bare,
    "unrendered": unrendered,
    "find": finding,
    "find by gradient": finding_by_gradient,
    "capture, last token": capturing,
    "capture, all tokens": lambda model: capturing(model, tail=None, positions=5),
    "nnsight": nnsight,
    "nnsight, stopped": lambda model: nnsight(model, stop=True),
    "TransformerLens": transformer_lens,
}


def peak_memory(model_name: str, contender: str, prompts: tuple[list[str], list[str]]) -> int:
    """Bytes that a contender takes at its peak, above the loaded and warmed-up model. Run it in a fresh process."""
    model = safety_neurons.load(model_name)
    work = CONTENDERS[contender](model)
    work(["Hello."], ["Hello there."])
    return peak_while(lambda: work(*prompts))


def check_same(works: dict[str, Work], prompts: tuple[list[str], list[str]], dtype: torch.dtype) -> None:
    """All that compute means at the last token must get the same ones, up to the rounding of the model's dtype."""
    tolerance = torch.finfo(dtype).eps ** 0.5
    expected = works["capture, last token"](*prompts)
    for name in RIVALS.keys() & works.keys():
        for mine, theirs in zip(itertools.chain(*expected), itertools.chain(*works[name](*prompts)), strict=True):
            assert (theirs - mine).norm() <= tolerance * mine.norm(), f"{name} read other activations"


def compare(model_name: str, count: int, rounds: int, only: str | None) -> list[Row]:
    """All rows of the table, or "only" their "time" or "memory"."""
    prompts = (load_prompts("harmful").texts[:count], load_prompts("benign").texts[:count])
    names = [name for name in CONTENDERS if name not in RIVALS or importlib.util.find_spec(RIVALS[name])]
    names.remove("unrendered")
    spent: dict[str, list[Spent]] = {}
    if only != "memory":
        model = safety_neurons.load(model_name)
        works = {name: CONTENDERS[name](model) for name in names}
        check_same(works, ([*prompts[0][:3]], [*prompts[1][:3]]), model.model.dtype)
        spent = take_turns({name: functools.partial(work, *prompts) for name, work in works.items()}, rounds)
        del model, works
    alone = track([] if only == "time" else names, "peak memory, one process after the other", console=errors)
    peak = {name: in_fresh_process(peak_memory, model_name, name, prompts) for name in alone}

    def row(of: str, over: str, bar: float) -> Row:
        if over not in names:
            return Row(of, over, bar, note=f"not installed: pip install {RIVALS[over].replace('_', '-')}")
        wall, processor = (ratio(spent, of, over, clock) if spent else None for clock in Spent._fields)
        memory = peak[of] / peak[over] if peak else None
        return Row(of, over, bar, wall, processor, memory, mebibytes(peak[of], peak[over]) if peak else "")

    bars = {"find": 0.65, "find by gradient": 1.0, "capture, last token": 0.65, "capture, all tokens": 1.1}
    rows = [row(of, "forward pass", bar) for of, bar in bars.items()]
    rows += [row("capture, last token", rival, 0.65) for rival in RIVALS]
    if peak:
        # All of one length, so that nothing but their number differs.
        numbered = [f"Number {number:04}" for number in range(MANY)]
        few, many = (
            in_fresh_process(peak_memory, model_name, "unrendered", (numbered[:size], [])) for size in (FEW, MANY)
        )
        note = mebibytes(many, few)
        rows.append(Row(f"capture, {MANY:,} prompts", f"{FEW} prompts", FLAT, memory=many / few, note=note))
    return rows


def table(rows: Sequence[Row]) -> Table:
    """The ratios, red where they miss the bar."""
    result = Table(title="Ratios: below 1 is faster or smaller", title_justify="left")
    for column in ("what", "over", "bar", "time", "processor time", "peak memory", ""):
        result.add_column(column, justify="left" if column in ("what", "over", "") else "right")
    for row in rows:
        cells = [
            "-" if value is None else f"[{'red' if value > row.bar else 'green'}]{value:.3f}"
            for value in (row.time, row.processor_time, row.memory)
        ]
        result.add_row(row.of, row.over, f"{row.bar:.2f}", *cells, row.note)
    return result


def main() -> None:
    """Read the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(
        description="Measure what finding costs.", epilog=METHOD, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a preset or another Llama-like model")
    parser.add_argument("--prompts", type=int, default=BATCH_SIZE, help="prompts a set (default: one batch)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds in which the contenders take turns")
    parser.add_argument("--only", choices=["time", "memory"], help="measure only one of the two")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows to this file as well")
    options = parser.parse_args()
    rows = compare(options.model, options.prompts, options.rounds, options.only)
    Console().print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
