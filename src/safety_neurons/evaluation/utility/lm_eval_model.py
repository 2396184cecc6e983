"""The adapter from a loaded model to the LM Evaluation Harness. Imports `lm_eval`, which is an extra."""

import copy
from collections.abc import Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM

from safety_neurons.models.chat import ChatModel, Turn
from safety_neurons.models.generate import in_batches, only_settings
from safety_neurons.models.likelihood import read_tokens
from safety_neurons.models.tokens import left_padded, padding_token

# The source, the tokens of the context, and those of the continuation.
LikelihoodRequest = tuple[Any, list[int], list[int]]


class InMemory(HFLM):
    """Reads the context and its continuation in two passes, as in generation.

    The harness reads both in one pass, padded on the right without a mask. A guard or a calibration would mistake its
    end for the end of the prompt.
    """

    def __init__(self, chat: ChatModel, batch_size: int) -> None:
        # Copied: the harness adds a padding token where there is none, which the model has no embedding for.
        tokenizer = copy.deepcopy(chat.tokenizer)
        tokenizer.pad_token_id = padding_token(chat)
        super().__init__(pretrained=chat.model, tokenizer=tokenizer, batch_size=batch_size)
        self.chat = chat

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The turns in the model's template; without a prompt to answer, the last one is how the answer begins."""
        turns = [Turn(turn["role"], turn["content"]) for turn in chat_history]  # type: ignore[arg-type]
        if add_generation_prompt:
            return self.chat.template.render(turns)
        return self.chat.template.render(turns[:-1]) + turns[-1].content

    def _model_generate(self, *args: Any, **options: Any) -> Any:
        with only_settings(self.chat):
            return super()._model_generate(*args, **options)

    def _loglikelihood_tokens(
        self, requests: Sequence[LikelihoodRequest], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation in nats, and whether it is the greedy one."""

        def read(batch: list[int]) -> list[tuple[float, bool]]:
            pairs = [self._fitted(*requests[index][1:]) for index in batch]
            prompts = left_padded([context for context, _ in pairs], padding_token(self.chat)).to(self.chat.device)
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
