"""The adapter from a loaded model to the LM Evaluation Harness. Imports `lm_eval`, which is an extra."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import in_batches, padding_token
from safety_neurons.models.likelihood import read_tokens

# The source, the tokens of the context, and those of the continuation.
LikelihoodRequest = tuple[Any, list[int], list[int]]


class InMemory(HFLM):
    """Reads the context and its continuation in two passes, as in generation.

    The harness reads both in one pass, padded on the right without a mask. A guard or a calibration would mistake its
    end for the end of the prompt.
    """

    def __init__(self, chat: ChatModel, batch_size: int) -> None:
        # Copied: the harness adds a padding token to the tokenizer.
        super().__init__(
            pretrained=chat.model,
            tokenizer=copy.deepcopy(chat.tokenizer),
            batch_size=batch_size,
            chat_template_args=dict(chat.template_options),
        )
        self.chat = chat

    def _loglikelihood_tokens(
        self, requests: Sequence[LikelihoodRequest], disable_tqdm: bool = False, override_bs: int | None = None
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
            likelihoods = []
            for logits, tokens, real in zip(*reading, strict=True):
                chosen = logits[real].float().log_softmax(-1)
                likelihood = chosen.gather(1, tokens[real][:, None]).sum()
                likelihoods.append((float(likelihood), bool((chosen.argmax(-1) == tokens[real]).all())))
            return likelihoods

        # `in_batches` sorts by the length of texts; here, the number of tokens stands in for it.
        lengths = ["." * (len(context) + len(continuation)) for _, context, continuation in requests]
        return in_batches(lengths, override_bs or self.batch_size, read)

    def _fitted(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """The end of both, truncated to the model's length, with at least one token of the context."""
        continuation = continuation[-self.max_length :]
        return context[-max(1, self.max_length + 1 - len(continuation)) :], continuation
