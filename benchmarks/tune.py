"""What a training step costs: the safety neurons' slices beside LoRA and full fine-tuning of the MLP.

Run it alone: `python benchmarks/tune.py` (LoRA needs PEFT: the extra `lora`).
"""

import argparse
import copy
import functools
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from memory import in_fresh_process, mebibytes, peak_while
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from turns import ratio, take_turns

import safety_neurons
from safety_neurons.cli.console import errors
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import forward
from safety_neurons.models.presets import DEFAULT_MODEL
from safety_neurons.models.tokens import padding_token
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.prompts import load_prompts
from safety_neurons.tuning.batches import Collator, encode
from safety_neurons.tuning.corpus import Pair
from safety_neurons.tuning.delta_model import DeltaModel
from safety_neurons.tuning.lora import RANK, matrices_of

METHOD = """\
A step is the forward pass, the loss of the completions, the backward pass, clipping, and AdamW, on the same batch for
all. Time: all contenders take turns in every round; a cell is the median over the rounds of the ratio within a round.
Memory: the peak above the loaded model, optimizer state included, each in a process of its own. LoRA is PEFT's, rank
8 on gate, up and down, its adapters in float32 as PEFT makes them. Full fine-tuning trains the MLPs' matrices in the
model's own dtype, which is the cheapest way to do it.
"""
Step = Callable[[], None]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """The slices over a rival, with the bars that the ratios must not exceed."""

    over: str
    time_bar: float
    memory_bar: float
    time: float
    processor_time: float
    memory: float
    note: str


def random_neurons(model: ChatModel, percent: float) -> NeuronSet:
    """As many neurons as a budget has, spread over all layers: which ones they are makes no difference to a step."""
    texts = load_prompts("harmful").texts[:2], load_prompts("benign").texts[:2]
    return safety_neurons.find(model, *texts, score="random", percent=percent, selection="none")


def batch_of(model: ChatModel, size: int, tokens: int) -> Batch:
    """Requests with answers of so many tokens."""
    words = " ".join(load_prompts("benign").texts)
    answer = model.tokenizer.decode(model.tokenizer(words, add_special_tokens=False)["input_ids"][:tokens])
    texts = load_prompts("harmful").texts[:size]
    pairs = [Pair("refusal", "", text, "", answer, cut_off=True) for text in texts]
    return Collator(padding_token(model))([encode(model, pair) for pair in pairs])


def stepping(loss: Callable[[], Tensor], parameters: Iterable[nn.Parameter], optimizers: list[Any]) -> Step:
    """One optimizer step after the other; the optimizer is put into the list, for its state to be looked at."""
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0)
    optimizers.append(optimizer)

    def step() -> None:
        loss().backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def slices(model: ChatModel, batch: Batch, optimizers: list[Any], percent: float = 1.0) -> Step:
    """Our own: only the neurons' slices, in float32."""
    delta_model = DeltaModel(model, random_neurons(model, percent)).to(model.device)
    return stepping(lambda: delta_model(**batch)["loss"], delta_model.parameters(), optimizers)


def lora(model: ChatModel, batch: Batch, optimizers: list[Any]) -> Step:
    """PEFT's LoRA on the matrices of the MLPs."""
    from peft import LoraConfig, get_peft_model

    own = own_weights(model, trained=[])
    adapted = get_peft_model(own, LoraConfig(r=RANK, target_modules=matrices_of(model)))
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    return stepping(functools.partial(completion_loss, own, batch), trained, optimizers)


def full(model: ChatModel, batch: Batch, optimizers: list[Any]) -> Step:
    """All matrices of the MLPs."""
    names = matrices_of(model)
    own = own_weights(model, trained=names)
    trained = [parameter for name in names for parameter in own.get_submodule(name).parameters()]
    return stepping(functools.partial(completion_loss, own, batch), trained, optimizers)


CONTENDERS: dict[str, Callable[..., Step]] = {"slices": slices, "LoRA": lora, "full MLP": full}
BARS = {"LoRA": (0.65, 0.7), "full MLP": (0.6, 0.5)}


def completion_loss(network: Any, batch: Batch) -> Tensor:
    """What `SliceTrainee` computes, on a plain model."""
    kept = batch["labels"].shape[1]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = forward(network, inputs, last_logits=kept + 1).logits[:, -kept - 1 : -1].float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


def own_weights(model: ChatModel, trained: list[str]) -> Any:
    """A copy of the model that shares all weights but those of the trained modules; only these have gradients."""
    copied = {id(value) for name in trained for value in model.model.get_submodule(name).parameters()}
    tensors = itertools.chain(model.model.parameters(), model.model.buffers())
    network = copy.deepcopy(model.model, {id(held): held for held in tensors if id(held) not in copied})
    for name in trained:
        network.get_submodule(name).requires_grad_(True)
    return network


def loaded(name: str) -> ChatModel:
    """The model with weights that nobody trains unless they are copied."""
    model = safety_neurons.load(name)
    model.coverage  # noqa: B018  (the neurons are looked for now, not in somebody's turn)
    model.model.requires_grad_(False)
    return model


def peak_memory(name: str, contender: str, size: int, tokens: int, percent: float) -> int:
    """Bytes that two steps take at their peak, with all that the contender needs besides the loaded model."""
    model = loaded(name)
    batch = batch_of(model, size, tokens)
    options = {"percent": percent} if contender == "slices" else {}
    with torch.no_grad():
        completion_loss(model.model, batch)

    def work() -> None:
        step = CONTENDERS[contender](model, batch, [], **options)
        step()
        step()

    return peak_while(work)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimizer's state."""
    return sum(value.nbytes for values in optimizer.state.values() for value in values.values())


def compare(name: str, size: int, tokens: int, percent: float, rounds: int) -> tuple[list[Row], dict[str, int]]:
    """The rows of the table, and the bytes of the slices' optimizer state at some budgets."""
    model = loaded(name)
    batch = batch_of(model, size, tokens)
    works = {rival: make(model, batch, []) for rival, make in CONTENDERS.items() if rival != "slices"}
    works["slices"] = slices(model, batch, [], percent)
    for step in works.values():
        step()
    spent = take_turns(works, rounds)
    del works
    states = {}
    for budget in (percent / 2, percent, percent * 2):
        optimizers: list[Any] = []
        slices(model, batch, optimizers, budget)()
        states[f"{budget:g}%"] = state_bytes(optimizers[0])
    del model, batch, optimizers
    alone = track(CONTENDERS, "peak memory, one process after the other", console=errors)
    peak = {one: in_fresh_process(peak_memory, name, one, size, tokens, percent) for one in alone}
    rows = [
        Row(
            rival,
            *bars,
            ratio(spent, "slices", rival),
            ratio(spent, "slices", rival, "processor"),
            peak["slices"] / peak[rival],
            mebibytes(peak["slices"], peak[rival]),
        )
        for rival, bars in BARS.items()
    ]
    return rows, states


def table(rows: list[Row], percent: float) -> Table:
    """The ratios, red where they miss the bar."""
    result = Table(title=f"A step on {percent:g}% of the neurons, over that of a rival: below 1 is better")
    for column in ("over", "bar", "time", "processor time", "bar", "peak memory", ""):
        result.add_column(column, justify="left" if column in ("over", "") else "right")
    for row in rows:
        limits = (row.time_bar, row.time_bar, row.memory_bar)
        values = (row.time, row.processor_time, row.memory)
        cells = [f"[{'red' if value > bar else 'green'}]{value:.2f}" for value, bar in zip(values, limits, strict=True)]
        result.add_row(row.over, f"{row.time_bar:.1f}", *cells[:2], f"{row.memory_bar:.1f}", cells[2], row.note)
    return result


def main() -> None:
    """Read the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(
        description="Measure what a training step costs.",
        epilog=METHOD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a preset, a hub id or a folder")
    parser.add_argument("--percent", type=float, default=1.0, help="budget of the slices, in percent of the neurons")
    parser.add_argument("--batch", type=int, default=4, help="pairs in a step")
    parser.add_argument("--tokens", type=int, default=24, help="tokens of a completion")
    parser.add_argument("--rounds", type=int, default=7, help="rounds in which the contenders take turns")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers to this file as well")
    options = parser.parse_args()
    rows, states = compare(options.model, options.batch, options.tokens, options.percent, options.rounds)
    console = Console()
    console.print(table(rows, options.percent))
    console.print("Optimizer state: " + ", ".join(f"{size / 2**20:.1f} MiB at {at}" for at, size in states.items()))
    if options.json:
        content = {"rows": [asdict(row) for row in rows], "optimizer_state": states}
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
