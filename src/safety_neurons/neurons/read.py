"""Reads the two prompt sets for a score: the counted tokens, their statistics, and the score's own measurement."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from safety_neurons.core.distributed import all_gather, owns, sync_errors
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Advance, ignore
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import batches_by_length, generate, halve_when_full
from safety_neurons.models.neurons.hook_points import HookPoint
from safety_neurons.neurons.capture import CapturedSums, capture_sums
from safety_neurons.neurons.neuron_set import Directions
from safety_neurons.neurons.scores import Evidence, NeuronValues, Reading, Score, Tokens, WriteNorms

# The response to harmful prompts if responses count and the model's own answers are not used: scores over response
# tokens need (harmful prompt, refusal) pairs.
PLAIN_REFUSAL = "I'm sorry, but I can't assist with that."


@dataclass(frozen=True)
class SideReading:
    """One prompt set after reading: the sums over the counted tokens and over those at the end of the prompt."""

    reading: Reading
    counted: CapturedSums
    prompt_end: CapturedSums


@dataclass(frozen=True)
class BothSides:
    """Harmful and benign prompts after reading."""

    harmful: SideReading
    benign: SideReading


def check_reading(
    model: ChatModel, score: Score, tokens: Tokens, last_tokens: int, positions: int, other: ChatModel | None
) -> None:
    """Raise SafetyNeuronsError if the score cannot be computed with these options."""
    if tokens not in ("last", "prompt", "response"):
        raise SafetyNeuronsError(f"tokens must be 'last', 'prompt' or 'response', not {tokens!r}.")
    if tokens not in score.allowed:
        raise SafetyNeuronsError(
            f"The score {score.name} supports only tokens {', '.join(score.allowed)}, not {tokens!r}. Omit tokens, or "
            "choose another score."
        )
    if last_tokens < 1:
        raise SafetyNeuronsError(f"last_tokens must be at least 1, not {last_tokens}.")
    if last_tokens > 1 and tokens != "last":
        raise SafetyNeuronsError(f"last_tokens requires tokens 'last', not {tokens!r}: omit one of them.")
    if positions < 1:
        raise SafetyNeuronsError(f"positions must be at least 1, not {positions}.")
    if score.compares_models and other is None:
        raise SafetyNeuronsError(
            f"The score {score.name} compares two checkpoints: give the second (other; the setting find.other_model)."
        )
    if score.compares_models and other is not None:
        _check_comparable(model, other)


def _check_comparable(model: ChatModel, other: ChatModel) -> None:
    """Raise SafetyNeuronsError if two models differ in their neurons or tokens."""
    shapes = [[(point.layer, point.width) for point in chat.hook_points] for chat in (model, other)]
    if shapes[0] != shapes[1]:
        raise SafetyNeuronsError(
            f"{model.name} and {other.name} differ in their layers or widths, so their neurons cannot be compared. "
            "Use two checkpoints of one model, before and after training."
        )
    if model.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise SafetyNeuronsError(
            f"The tokenizers of {model.name} and {other.name} differ. Use two checkpoints of one model, before and "
            "after training."
        )


def passes(score: Score, tokens: Tokens) -> int:
    """Number of passes over each prompt, for progress bars."""
    return 1 + (tokens == "response") + (score.measure is not None)


def write_norms(model: ChatModel) -> WriteNorms:
    """The norms of all write vectors, one hook point at a time: all vectors are as large as a third of the model."""
    found = [_norms(point) for point in model.hook_points]
    return WriteNorms([norms[0] for norms in found], [norms[1] for norms in found])


def _norms(point: HookPoint) -> Tensor:
    """The 1-norms and 2-norms of a hook point's write vectors: float32 [2, neurons]."""

    def norms(neurons: list[int]) -> Tensor:
        vectors = point.write_vectors(None if len(neurons) == point.width else torch.tensor(neurons))
        return torch.stack([vectors.norm(p=p, dim=1).cpu() for p in (1, 2)])

    return torch.cat(halve_when_full(norms, list(range(point.width))), 1)


def read_both(
    model: ChatModel,
    harmful: Sequence[str],
    benign: Sequence[str],
    norms: WriteNorms,
    *,
    tokens: Tokens,
    last_tokens: int,
    positions: int,
    own_answers: bool,
    response_tokens: int,
    batch_size: int,
    other: ChatModel | None = None,
    score: Score | None = None,
    advance: Advance = ignore,
) -> BothSides:
    """Read both prompt sets once, and again with responses if these count.

    `score` is measured in the same pass if it can be.
    """

    def read(prompts: Sequence[str], own_answers: bool) -> SideReading:
        texts = [model.render(prompt) for prompt in prompts]
        tail = None if tokens == "prompt" else last_tokens
        reading = Reading(model, texts, tail, norms, other, batch_size, advance)
        end = capture_sums(
            model,
            texts,
            tail=tail,
            positions=max(positions, last_tokens),
            measure=score.measure_pass(reading) if score is not None and score.measure_pass is not None else None,
            batch_size=batch_size,
            advance=advance,
        )
        if tokens != "response":
            return SideReading(reading, end, end)
        reading = _with_responses(reading, own_answers, response_tokens)
        counted = capture_sums(model, reading.texts, tail=reading.tail, batch_size=batch_size, advance=advance)
        return SideReading(reading, counted, end)

    return BothSides(read(harmful, own_answers), read(benign, True))


def _with_responses(reading: Reading, own_answers: bool, response_tokens: int) -> Reading:
    """The same prompts with responses, whose tokens count."""
    model, texts = reading.model, reading.texts
    responses = [PLAIN_REFUSAL] * len(texts)
    if own_answers:
        responses = _respond(model, texts, response_tokens, reading.batch_size)
    pairs = [text + response for text, response in zip(texts, responses, strict=True)]
    tails = [
        len(model.encode([pair])["input_ids"][0]) - len(model.encode([text])["input_ids"][0])
        for pair, text in zip(pairs, texts, strict=True)
    ]
    return replace(reading, texts=pairs, tail=tails)


def _respond(model: ChatModel, texts: Sequence[str], tokens: int, batch_size: int) -> list[str]:
    """The model's own answers, or a plain refusal for empty ones; each process generates a share."""
    batches = batches_by_length(texts, batch_size)
    others = frozenset(index for number, batch in enumerate(batches) if not owns(number) for index in batch)
    answers: dict[int, str] = {}
    with sync_errors():
        for index, answer in generate(model, texts, max_new_tokens=tokens, batch_size=batch_size, done=others):
            answers[index] = answer.text
    for part in all_gather(answers, dict[int, str]):
        answers |= part
    return [answers[index] or PLAIN_REFUSAL for index in range(len(texts))]


def measure_both(sides: BothSides, score: Score) -> tuple[NeuronValues, NeuronValues] | None:
    """The score's own measurement on harmful and on benign prompts, if it has one."""
    if score.measure is None and score.measure_pass is None:
        return None
    return _measured(sides.harmful, score), _measured(sides.benign, score)


def _measured(side: SideReading, score: Score) -> NeuronValues:
    """What was measured with the statistics, or is now."""
    return side.prompt_end.measurement or measure(side.reading, score)


def measure(reading: Reading, score: Score) -> NeuronValues:
    """The score's own measurement of one prompt set, in a pass of its own."""
    if score.measure is not None:
        return score.measure(reading)
    assert score.measure_pass is not None
    return capture_sums(
        reading.model,
        reading.texts,
        tail=reading.tail,
        measure=score.measure_pass(reading),
        batch_size=reading.batch_size,
    ).measurement


def gather(
    parts: Sequence[BothSides], measured: Sequence[tuple[NeuronValues, NeuronValues] | None], score: Score, seed: int
) -> Evidence:
    """The evidence for a score from one or several parts of the prompts and the measurements on each."""
    sides = [[part.harmful for part in parts], [part.benign for part in parts]]
    statistics = [CapturedSums.merged([part.counted for part in side]).statistics() for side in sides]
    pairs = [pair for pair in measured if pair is not None]
    merged = [
        score.merge([pair[number] for pair in pairs], [side.counted.prompts for side in sides[number]])
        for number in (0, 1)
        if pairs
    ]
    norms = sides[0][0].reading.norms
    both = (merged[0], merged[1]) if merged else None
    return Evidence(statistics[0], statistics[1], norms.norm_1, norms.norm_2, seed, both)


def directions(parts: Sequence[BothSides], positions: int) -> Directions:
    """Mean activations at the last positions of the prompts, over one or several parts of them."""
    found = []
    for ends in ([part.harmful.prompt_end for part in parts], [part.benign.prompt_end for part in parts]):
        by_position = CapturedSums.merged(ends).statistics().by_position
        assert by_position is not None
        found.append(tuple(means[len(means) - positions :] for means in by_position))
    return Directions(found[0], found[1])
