"""`find`: the safety knowledge neurons of a model, from harmful and benign prompts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.find import scores
from safety_neurons.find.capture import ActivationStatistics, capture
from safety_neurons.find.neuron_set import Directions, NeuronSet, Provenance, sorted_indices
from safety_neurons.find.processes import all_or_none, from_all_processes, is_mine
from safety_neurons.find.select import select
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import BATCH_SIZE, batches_by_length, generate, halve_when_full
from safety_neurons.models.sites import NeuronSite
from safety_neurons.progress import Advance, ignore

# What a harmful prompt is paired with where a response is needed and the model complied: scores over response tokens
# need (harmful prompt, refusal) pairs.
PLAIN_REFUSAL = "I'm sorry, but I can't assist with that."


def find(
    model: ChatModel,
    harmful: Sequence[str],
    benign: Sequence[str],
    *,
    score: str = "write-contrast",
    percent: float = 0.5,
    scope: str | None = None,
    positions: int = 5,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    response_tokens: int = 32,
    advance: Advance = ignore,
) -> NeuronSet:
    """Find the neurons that set harmful prompts apart from benign ones.

    In a script that torchrun started, `torch.distributed.init_process_group()` before it makes the processes share
    the work; each of them calls `find` with a model of its own, and all get the same neurons.

    Args:
        harmful, benign: requests, as a user would type them.
        score: the ranking's name (`safety_neurons.find.scores.names()`).
        percent: the budget, in percent of the neurons of a layer or of the model.
        scope: "layer" or "model"; the score's own default when left out.
        positions: for how many positions at the prompt's end the directions for calibration are kept.

    Raises:
        SafetyNeuronsError: a set is empty, the score is unknown, or the model cannot be read.
    """
    chosen = scores.get(score)
    if not harmful or not benign:
        raise SafetyNeuronsError("Finding needs harmful and benign prompts: one of the two sets is empty.")
    if positions < 1:
        raise SafetyNeuronsError(f"Directions need at least one position at the prompt's end, not {positions}.")
    sides: list[ActivationStatistics] = []
    answered: list[ActivationStatistics] = []
    for prompts, is_harmful in ((harmful, True), (benign, False)):
        texts = [model.render(prompt) for prompt in prompts]
        tail = None if chosen.positions == "prompt" else 1
        sides.append(capture(model, texts, tail=tail, positions=positions, batch_size=batch_size, advance=advance))
        if chosen.positions == "response":
            responses = (
                [PLAIN_REFUSAL] * len(texts) if is_harmful else _respond(model, texts, response_tokens, batch_size)
            )
            answered.append(_capture_responses(model, texts, responses, batch_size))
    counted = (answered[0], answered[1]) if answered else (sides[0], sides[1])
    norms = [_write_norms(site) for site in model.sites]
    evidence = scores.Evidence(
        harmful=counted[0],
        benign=counted[1],
        write_norm_1=[norm[0] for norm in norms],
        write_norm_2=[norm[1] for norm in norms],
        seed=seed,
    )
    on_harmful, on_benign = chosen.compute(evidence)
    used_scope = scope or chosen.scope
    rejection, conformity = select(
        on_harmful, on_benign, percent, used_scope, chosen.contrastive, [site.layer for site in model.sites]
    )
    assert sides[0].by_position is not None
    assert sides[1].by_position is not None
    return NeuronSet(
        sorted_indices(rejection),
        sorted_indices(conformity),
        tuple(site.width for site in model.sites),
        tuple(site.layer for site in model.sites),
        Provenance(
            model=model.name,
            identity=model.identity,
            score=score,
            percent=percent,
            scope=used_scope,
            seed=seed,
            parameters_per_neuron=tuple(site.parameters_per_neuron for site in model.sites),
            parameters_total=model.parameters,
            coverage=str(model.coverage),
        ),
        Directions(tuple(sides[0].by_position), tuple(sides[1].by_position)),
    )


def _write_norms(site: NeuronSite) -> Tensor:
    """The sum norms and the lengths of a site's write vectors: float32 [2, neurons].

    One site at a time, in parts where memory runs out: all in float32 would be as large as a third of the model.
    """

    def norms(neurons: list[int]) -> Tensor:
        vectors = site.write_vectors(None if len(neurons) == site.width else torch.tensor(neurons))
        return torch.stack([vectors.norm(p=p, dim=1).cpu() for p in (1, 2)])

    return torch.cat(halve_when_full(norms, list(range(site.width))), 1)


def _respond(model: ChatModel, texts: Sequence[str], tokens: int, batch_size: int) -> list[str]:
    """The model's own answers, or a plain refusal where it says nothing; each process generates a share of them."""
    batches = batches_by_length(texts, batch_size)
    others = frozenset(index for number, batch in enumerate(batches) if not is_mine(number) for index in batch)
    answers: dict[int, str] = {}
    with all_or_none():
        for index, answer in generate(model, texts, max_new_tokens=tokens, batch_size=batch_size, done=others):
            answers[index] = answer.text
    for part in from_all_processes(answers):
        answers |= part
    return [answers[index] or PLAIN_REFUSAL for index in range(len(texts))]


def _capture_responses(
    model: ChatModel, texts: Sequence[str], responses: Sequence[str], batch_size: int
) -> ActivationStatistics:
    """Statistics over the tokens of the responses alone."""
    pairs = [text + response for text, response in zip(texts, responses, strict=True)]
    tails = [
        len(model.encode([pair])["input_ids"][0]) - len(model.encode([text])["input_ids"][0])
        for pair, text in zip(pairs, texts, strict=True)
    ]
    return capture(model, pairs, tail=tails, batch_size=batch_size)
