"""The corpus as batches of tokens: the pairs of each step, and the part of each process."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel, Conversation
from safety_neurons.models.context import context_length
from safety_neurons.models.tokens import answer_end
from safety_neurons.tuning.config import Training
from safety_neurons.tuning.corpus import Corpus, Pair

IGNORED = -100


class TokenizedPair(NamedTuple):
    """Token ids of prompt and response, labels (-100 for the prompt), and whether the KL penalty applies.

    `number` is the pair's place in the corpus; -1 for a pair outside one. `match` is that of the pair.
    """

    input_ids: list[int]
    labels: list[int]
    keep: bool
    number: int = -1
    match: str = ""


def rendered(model: ChatModel, pair: Pair) -> str:
    """What comes before the response, in the model's chat template."""
    return model.render_conversation(Conversation.of(pair.user, pair.prefill, before=pair.before))


def encode(model: ChatModel, pair: Pair, number: int = -1) -> TokenizedPair:
    """A pair as tokens; a response that is not cut off ends with the end-of-turn token, if the model has one.

    Raises:
        SafetyNeuronsError: the pair is longer than the model's context, or there is nothing to learn from it.
    """
    tokenizer = model.tokenizer
    prompt = tokenizer(rendered(model, pair), add_special_tokens=False)["input_ids"]
    response = tokenizer(pair.response, add_special_tokens=False)["input_ids"]
    if not pair.cut_off:
        response = [*response, *answer_end(model)]
    name = pair.prompt_id or pair.user[:60]
    if not response:
        raise SafetyNeuronsError(f"A pair of the corpus (prompt {name!r}) has an empty response. Leave it out.")
    context = context_length(model.model.config)
    if context is not None and len(prompt) + len(response) > context:
        raise SafetyNeuronsError(
            f"A pair of the corpus (prompt {name!r}) has {len(prompt) + len(response):,} "
            f"tokens, more than the context of {model.name} ({context:,}). Leave it out or shorten it."
        )
    labels = [IGNORED] * len(prompt) + list(response)
    return TokenizedPair([*prompt, *response], labels, pair.kind == "benign", number, pair.match)


def encode_all(model: ChatModel, corpus: Corpus) -> list[TokenizedPair]:
    """All pairs of a corpus as tokens."""
    return [encode(model, pair, number) for number, pair in enumerate(corpus.pairs)]


def steps_per_epoch(corpus: Corpus, batch_size: int) -> int:
    """The number of optimizer steps in a pass over the corpus."""
    return -(-len(corpus.pairs) // batch_size)


def training_steps(corpus: Corpus, batch_size: int, epochs: int) -> int:
    """The number of optimizer steps of the training."""
    return steps_per_epoch(corpus, batch_size) * epochs


def batches(examples: Sequence[TokenizedPair], training: Training) -> list[list[int]]:
    """The indices of the pairs of every optimizer step, over all processes.

    In each pass the shuffled corpus is split into pools of `length_pool` batches, each pool is sorted by length and
    split into batches, and the batches are shuffled. Counterparts are in the same batch; batches of an odd size split
    some where no pair without a counterpart is left to fill them.
    """
    generator = torch.Generator().manual_seed(training.seed)
    size = training.batch_size
    planned = []
    for _ in range(training.epochs):
        shuffled = torch.randperm(len(examples), generator=generator).tolist()
        order = _together(examples, shuffled, size)
        found = []
        for start in range(0, len(order), size * training.length_pool):
            pool = order[start : start + size * training.length_pool]
            if training.length_pool > 1:
                by_length = sorted(pool, key=lambda index: len(examples[index].input_ids))
                pool = _together(examples, by_length, size)
            found += [pool[first : first + size] for first in range(0, len(pool), size)]
        planned += [found[place] for place in torch.randperm(len(found), generator=generator).tolist()]
    return planned


def _together(examples: Sequence[TokenizedPair], order: Sequence[int], size: int) -> list[int]:
    """The indices in this order, but with counterparts side by side where they fall into one batch of `size`."""
    groups: dict[str | int, list[int]] = {}
    for index in order:
        groups.setdefault(examples[index].match or index, []).append(index)
    units = [group[first : first + 2] for group in groups.values() for first in range(0, len(group), 2)]
    singles = [unit for unit in units if len(unit) == 1]
    if len(singles) % 2 and size % 2 == 0:
        # At the end: within, it would move all counterparts behind it to the edge of a batch.
        units.remove(singles[-1])
        units.append(singles[-1])
    found: list[int] = []
    while units:
        place = 0
        if len(found) % size == size - 1:
            place = next((place for place, unit in enumerate(units) if len(unit) == 1), 0)
        found += units.pop(place)
    return found


def micro_batches(batch: Sequence[int], parts: int) -> list[list[int]]:
    """A batch in `parts` parts that differ by at most one pair; with more parts than pairs, some are empty."""
    edges = [len(batch) * part // parts for part in range(parts + 1)]
    return [list(batch[first:last]) for first, last in itertools.pairwise(edges)]


@dataclass(frozen=True)
class Collator:
    """Left-padded batches; labels only for the longest response of the batch."""

    padding: int

    def __call__(self, examples: Sequence[TokenizedPair]) -> dict[str, Tensor]:
        longest = max(len(example.input_ids) for example in examples)
        # At least one, for parts of a batch without labels.
        kept = max(1, *(sum(label != IGNORED for label in example.labels) for example in examples))
        ids, masks, labels = [], [], []
        for example in examples:
            missing = longest - len(example.input_ids)
            ids.append([self.padding] * missing + example.input_ids)
            masks.append([0] * missing + [1] * len(example.input_ids))
            labels.append(([IGNORED] * longest + example.labels)[-kept:])
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(masks),
            "labels": torch.tensor(labels),
            "pairs": torch.tensor([example.number for example in examples]),
        }
