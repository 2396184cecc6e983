"""A model in memory as the LM Evaluation Harness takes it. Imports `lm_eval`, which is an extra."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import in_batches, padding_token
from safety_neurons.models.likelihood import read_tokens

# What it was made from, the context's tokens and those of the continuation.
Request = tuple[Any, list[int], list[int]]


class InMemory(HFLM):
    """Reads the context and its continuation in two passes, as in generation.

    The harness reads both in one pass that is padded on the right without a mask: a guard or a calibration would take
    the end of that for the prompt's end.
    """

    def __init__(self, chat: ChatModel, batch_size: int) -> None:
        # The harness gives the tokenizer a padding token, which is none of the model's business.
        super().__init__(
            pretrained=chat.model,
            tokenizer=copy.deepcopy(chat.tokenizer),
            batch_size=batch_size,
            chat_template_args=dict(chat.template_options),
        )
        self.chat = chat

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation in nats, and whether it is the greedy one."""

        def read(batch: list[int]) -> list[tuple[float, bool]]:
            pairs = [self._fitted(*requests[index][1:]) for index in batch]
            longest = max(len(context) for context, _ in pairs)
            missing = [longest - len(context) for context, _ in pairs]
            padding = padding_token(self.chat)
            prompts = {
                "input_ids": torch.tensor([[padding] * n + one for n, (one, _) in zip(missing, pairs, strict=True)]),
                "attention_mask": torch.tensor([[0] * n + [1] * (longest - n) for n in missing]),
            }
            prompts = {name: tensor.to(self.chat.device) for name, tensor in prompts.items()}
            reading = read_tokens(self.chat, prompts, [continuation for _, continuation in pairs])
            found = []
            for logits, tokens, real in zip(*reading, strict=True):
                chosen = logits[real].float().log_softmax(-1)
                likelihood = chosen.gather(1, tokens[real][:, None]).sum()
                found.append((float(likelihood), bool((chosen.argmax(-1) == tokens[real]).all())))
            return found

        # Of similar length means here: of similarly many tokens.
        lengths = ["." * (len(context) + len(continuation)) for _, context, continuation in requests]
        return in_batches(lengths, override_bs or self.batch_size, read)

    def _fitted(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """The end of both, as much as the model can read; of the context one token at least."""
        continuation = continuation[-self.max_length :]
        return context[-max(1, self.max_length + 1 - len(continuation)) :], continuation
