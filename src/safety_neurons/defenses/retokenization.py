"""Retokenization: the user's words are given to the model in other tokens than its tokenizer would choose.

The text stays the same, letter by letter, and a model can still read it; a suffix that was searched for as tokens
falls apart. A model trained on one tokenization refuses, and answers, somewhat worse in another.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import BatchEncoding

from safety_neurons.attacks.attack import AttackedPrompt
from safety_neurons.defenses.defense import Defended, Defense, Response, conversation_of, respond_with
from safety_neurons.defenses.perturbation import drawing
from safety_neurons.engines.bench import Bench
from safety_neurons.engines.engine import weights_of
from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.models.bpe import BytePairs
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import padding_token

# Words that no template holds.
_PROBE = "Xq7probe7qX"


@dataclass(frozen=True, kw_only=True)
class Retokenization(Defense):
    """Each merge of the byte-pair encoding is left out with probability `dropout`, anew at each step.

    Drawn with the model's own merges, by the bench's seed and the prompt. Xu et al. 2024 (SafeDecoding) compare with a
    dropout of 0.2 and write spaces between the subwords of another vocabulary; here the text itself is unchanged.
    """

    dropout: float = 0.4

    def __post_init__(self) -> None:
        if not 0 <= self.dropout <= 1:
            raise SafetyNeuronsError(f"{self.name}: dropout is between 0 and 1, not {self.dropout}.")

    @contextlib.contextmanager
    def opened(self, bench: Bench) -> Iterator[Defended]:
        model = weights_of(bench.engine, self.name)
        pairs = BytePairs.of(model, self.name)
        changed = bench.under(f"retokenization {self.dropout} {bench.seed}")
        # Whoever asks the engine itself gets the tokenizer's own tokens.
        yield Defended(bench.engine, functools.partial(self._respond, changed, model, pairs))

    def _respond(
        self, bench: Bench, model: ChatModel, pairs: BytePairs, prompts: Sequence[AttackedPrompt]
    ) -> list[Response]:
        ids = {}
        for prompt in prompts:
            text, start, end = rendered(model, prompt)
            numbers = drawing(bench.seed, "retokenization", prompt.user)
            ids[text] = pairs.encode(text, start, end, self.dropout, numbers)
        with encoded_as(model, ids):
            return respond_with(bench, prompts)


def rendered(model: ChatModel, prompt: AttackedPrompt) -> tuple[str, int, int]:
    """A prompt in the model's template, and from which character to which the user's words stand in it.

    Raises:
        SafetyNeuronsError: the template writes something else around these words than around others.
    """
    head, _, tail = model.render(_PROBE).partition(_PROBE)
    text = model.render_conversation(conversation_of(prompt))
    end = len(text) - len(prompt.prefill) - len(tail)
    if not (text.startswith(head) and text.startswith(tail, end) and len(head) <= end):
        raise SafetyNeuronsError(
            f"The chat template of {model.name} does not write the same around every prompt, so that the user's words "
            "cannot be found in it. Leave out the defence retokenization for this model."
        )
    return text, len(head), end


@contextlib.contextmanager
def encoded_as(model: ChatModel, ids: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """The model encodes these rendered texts as these token ids while the context is open, and no others."""

    def encode(texts: Sequence[str]) -> BatchEncoding:
        longest = max(len(ids[text]) for text in texts)
        empty = [longest - len(ids[text]) for text in texts]
        padding = padding_token(model)
        encoded = {
            "input_ids": [[padding] * gap + list(ids[text]) for text, gap in zip(texts, empty, strict=True)],
            "attention_mask": [[0] * gap + [1] * (longest - gap) for gap in empty],
        }
        return BatchEncoding({name: torch.tensor(rows) for name, rows in encoded.items()}).to(model.device)

    # What an instance holds comes before the method of its class.
    vars(model)["encode"] = encode
    try:
        yield
    finally:
        del vars(model)["encode"]


DEFENSE = Retokenization(
    name="retokenization",
    source="Jain et al. 2023, Baseline Defenses for Adversarial Attacks Against Aligned Language Models "
    "(arXiv:2309.00614), with BPE-dropout (Provilkov et al. 2020); dropout 0.4",
    description="The model reads the user's words in randomly chosen other tokens.",
)
