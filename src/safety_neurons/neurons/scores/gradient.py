"""The change of refusal if a neuron moved from its activation on harmful prompts to that on benign ones.

A first-order estimate from the gradient of L = -log(p / (1 - p)), where p is the probability of refusing, as in the
source (section 2.3, equations 2 to 4). In the source p is the probability of whole refusal phrases; here it is that of
their first tokens, so one forward and one backward pass per prompt suffice. The source sets single neurons of the first
two thirds of the layers to a constant and tries the best five; here all layers are ranked.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import PromptPositions, follow_positions, forward
from safety_neurons.models.neurons.hook_points import Activations, HookPoint, activation_hooks
from safety_neurons.models.shared_prefix import Prompts
from safety_neurons.neurons.capture import MeasurePass, tails_of
from safety_neurons.neurons.scores.score import Evidence, NeuronValues, Reading, Score, by_side

# Beginnings of refusals.
REFUSALS = ("I'm sorry", "I cannot", "I can't", "I'm unable", "Sorry", "Unfortunately", "As an AI")


class _Gradients:
    """Hook that sums the gradients at the last positions [positions, neurons] during the backward pass."""

    def __init__(self, point: HookPoint, where: PromptPositions, positions: int) -> None:
        self.where = where
        self.total = torch.zeros(positions, point.width, dtype=torch.float64)

    def __call__(self, activations: Activations) -> Tensor:
        # The first hook point starts the graph, as nothing before it requires a gradient.
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
        # The model must continue with this tensor to give it a gradient.
        return values


def measure_pass(reading: Reading) -> MeasurePass:
    """The gradient of L at the last positions.

    The gradient of a routed expert's neurons is 0 on tokens that do not reach it.
    """
    model = reading.model
    positions = int(tails_of(reading.tail, [0]))
    refusing = first_tokens(model, reading.texts[0])

    def run(prompts: Prompts) -> NeuronValues:
        with _frozen(model.model), torch.enable_grad(), follow_positions(model.model, reach=positions) as where:
            sums = [_Gradients(point, where, positions) for point in model.hook_points]
            with activation_hooks(zip(model.hook_points, sums, strict=True)):
                logits = forward(model.model, prompts.inputs, cache=prompts.cache).logits[:, -1].float()
                loss(logits, refusing).sum().backward()
        return [hook.total for hook in sums]

    return MeasurePass(positions, run)


def loss(logits: Tensor, refusing: Tensor) -> Tensor:
    """-log(p / (1 - p)) for the probability p of the tokens `refusing`: [prompts] from logits [prompts, vocabulary]."""
    others = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
    others[refusing.to(logits.device)] = False
    return logits[:, others].logsumexp(-1) - logits[:, ~others].logsumexp(-1)


def first_tokens(model: ChatModel, text: str) -> Tensor:
    """The tokens with which refusals begin after a rendered prompt."""
    before = model.encode([text])["input_ids"][0].tolist()
    tokens: set[int] = set()
    for refusal in REFUSALS:
        after = model.encode([text + refusal])["input_ids"][0].tolist()
        # A tokenizer may merge the end of the prompt with what follows.
        same = next((place for place, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), None)
        tokens.add(after[len(before) if same is None else same])
    return torch.tensor(sorted(tokens))


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Disable the gradients of parameters, which would need as much memory as the model."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_()


def compute(evidence: Evidence) -> tuple[NeuronValues, NeuronValues]:
    """(g(H) + g(B)) * (mean_B - mean_H) at the best position."""
    assert evidence.measured is not None
    if evidence.harmful.by_position is None or evidence.benign.by_position is None:
        raise SafetyNeuronsError("The gradient score needs mean activations by position: set positions.")
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
    measure_pass=measure_pass,
    allowed=("last",),
)
