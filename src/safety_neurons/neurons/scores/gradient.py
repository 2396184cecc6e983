"""How much refusing would change if a neuron went from its activation on harmful prompts to that on benign ones.

First order, from the gradient of L = -log(p / (1 - p)), where p is the probability of refusing, as in the source
(section 2.3, equations 2 to 4). Where p is the mass of whole refusal phrases there, it is that of the phrases' first
tokens here, so that one forward and one backward pass per prompt are enough. The source pins single neurons of the
first two thirds of the layers to a constant and picks among the best five by trying; here all layers are ranked.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from safety_neurons.core.distributed import add_over_processes
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import PromptPositions, follow_positions, forward
from safety_neurons.models.neurons.hook_points import Activations, HookPoint, activation_hooks
from safety_neurons.neurons.capture import stream, tails_of
from safety_neurons.neurons.scores.score import Evidence, Layers, Reading, Score, by_side

# How refusals begin.
REFUSALS = ("I'm sorry", "I cannot", "I can't", "I'm unable", "Sorry", "Unfortunately", "As an AI")


class _Gradients:
    """The gradients of one site: sums at the last positions [positions, neurons], reduced while the pass goes back."""

    def __init__(self, point: HookPoint, where: PromptPositions, positions: int) -> None:
        self.where = where
        self.total = torch.zeros(positions, point.width, dtype=torch.float64)

    def __call__(self, activations: Activations) -> Tensor:
        # Nothing before the first neurons needs a gradient, so there it has to begin.
        values = activations.values if activations.values.requires_grad else activations.values.detach()
        values.requires_grad_()
        positions = len(self.total)
        offsets = activations.of_tokens(self.where.offsets).to(values.device)
        near = (offsets >= -positions) & (offsets < 0)
        rows = (offsets[near] + positions).cpu()
        columns = slice(activations.first, activations.first + values.shape[1])

        def add(gradient: Tensor) -> None:
            self.total[:, columns].index_add_(0, rows, gradient[near].cpu().double())

        values.register_hook(add)
        # The model goes on with this very tensor, or its gradient would be unknown.
        return values


def measure(reading: Reading) -> Layers:
    """Mean gradient of L over the prompts at their last positions: float32 [positions, neurons] per site.

    A routed expert's neurons change nothing on tokens that do not reach it: there the gradient is zero.
    """
    model = reading.model
    positions = int(tails_of(reading.tail, [0]))
    refusing = first_tokens(model, reading.texts[0])

    def run(batch: list[int]) -> Layers:
        inputs = model.encode([reading.texts[index] for index in batch])
        with _frozen(model.model), torch.enable_grad(), follow_positions(model.model) as where:
            sums = [_Gradients(point, where, positions) for point in model.hook_points]
            with activation_hooks(zip(model.hook_points, sums, strict=True)):
                logits = forward(model.model, inputs).logits[:, -1].float()
                loss(logits, refusing).sum().backward()
        return [point.total for point in sums]

    total = [torch.zeros(positions, point.width, dtype=torch.float64) for point in model.hook_points]
    for part in stream(reading.texts, run, reading.batch_size, reading.advance):
        for site_total, more in zip(total, part, strict=True):
            site_total += more
    add_over_processes(total)
    return [(site_total / len(reading.texts)).float() for site_total in total]


def loss(logits: Tensor, refusing: Tensor) -> Tensor:
    """-log(p / (1 - p)) with p the mass of the tokens `refusing`: [prompts] from logits [prompts, vocabulary]."""
    others = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
    others[refusing.to(logits.device)] = False
    return logits[:, others].logsumexp(-1) - logits[:, ~others].logsumexp(-1)


def first_tokens(model: ChatModel, text: str) -> Tensor:
    """The tokens with which a refusal may begin after a rendered prompt."""
    before = model.encode([text])["input_ids"][0].tolist()
    tokens: set[int] = set()
    for refusal in REFUSALS:
        after = model.encode([text + refusal])["input_ids"][0].tolist()
        # A tokenizer may join the prompt's end with what follows.
        same = next((place for place, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), None)
        tokens.add(after[len(before) if same is None else same])
    return torch.tensor(sorted(tokens))


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter wants a gradient while the context is open: they would need as much memory as the model."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_()


def compute(evidence: Evidence) -> tuple[Layers, Layers]:
    """At each position (g(H) + g(B)) * (mean_B - mean_H); the best position counts."""
    assert evidence.measured is not None
    if evidence.harmful.by_position is None or evidence.benign.by_position is None:
        raise SafetyNeuronsError("The gradient score needs mean activations by position: capture them with positions=.")
    values = []
    for on_harmful, on_benign, harmful, benign in zip(
        *evidence.measured, evidence.harmful.by_position, evidence.benign.by_position, strict=True
    ):
        positions = len(on_harmful)
        change = (on_harmful + on_benign) * (benign[-positions:] - harmful[-positions:])
        values.append(change.max(0).values)
    return by_side(values, evidence)


SCORE = Score(
    name="gradient",
    formula="(dL/da_i at harmful + at benign) * (mean a_i(B) - mean a_i(H)), L = -log odds of refusing",
    source="Kazemi, Chegini, Safi, arXiv 2605.08513",
    tokens="last",
    scope="model",
    contrastive=True,
    compute=compute,
    measure=measure,
    allowed=("last",),
)
