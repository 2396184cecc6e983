"""Lexicons of refusal and compliance, and how far writes separate their words from others (the vocabulary test).

The lists were fixed before any neuron was projected on them. They hold what answers consist of, not what requests are
about: "illegal" is a judgment of refusals, "theft" is only a topic. Words that occur in both kinds of answers ("help",
"assist", "I", "not") are in neither list.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from safety_neurons.explanation.readout import Readout, TokenReadout

_REFUSAL = """
sorry apology apologies apologize apologise apologizes unfortunately regret regrets regrettably afraid pardon
cannot cant unable incapable inability impossible
refuse refuses refused refusing refusal decline declines declined declining deny denies denied denying
reject rejects rejected rejecting rejection
forbid forbids forbidden prohibit prohibits prohibited prohibition disallow disallowed banned
illegal illegally unlawful unethical immoral unacceptable inappropriate improper irresponsible
harmful dangerous unsafe offensive
violate violates violated violating violation violations
"""
_COMPLIANCE = """
sure certainly absolutely definitely gladly happily
yes yeah yep ok okay alright
here below following follows
first firstly step steps begin start starting
guide tutorial tips ideas suggestions example examples instructions
great perfect excellent wonderful enjoy
glad happy delighted pleased welcome ready
"""
LEXICONS = {"refusal": tuple(_REFUSAL.split()), "compliance": tuple(_COMPLIANCE.split())}
# Number of other words that a lexicon is compared with. All writes meet the same ones, so drawing more adds little.
REFERENCE = 2000
# A lexicon's token is among the top words of a write if its logit is above that of this share of other words.
TOP = 0.99
# Number of writes that are measured at once, at most.
ROWS = 1024


@dataclass(frozen=True)
class MatchedLexicon:
    """A lexicon in one model's vocabulary: the ids of its tokens, and its words that are not a single token."""

    name: str
    tokens: tuple[int, ...]
    missing: tuple[str, ...]


def vocabulary_words(tokenizer: PreTrainedTokenizerBase, size: int) -> list[str]:
    """The text of tokens 0 to `size` - 1, lowercase and stripped; "" for special tokens."""
    count = min(len(tokenizer), size)
    special = set(tokenizer.all_special_ids)
    words = ["" if token in special else tokenizer.decode(token).strip().lower() for token in range(count)]
    return words + [""] * (size - count)


def match(name: str, words: list[str]) -> MatchedLexicon:
    """Find a lexicon in a vocabulary (`vocabulary_words`): whole tokens in any case, with or without a leading space.

    Words that the tokenizer splits are listed in `missing`: their pieces ("un" of "unethical") begin many other words.
    """
    wanted, present = dict.fromkeys(LEXICONS[name]), set(words)
    tokens = tuple(token for token, word in enumerate(words) if word in wanted)
    return MatchedLexicon(name, tokens, tuple(word for word in LEXICONS[name] if word not in present))


def reference_tokens(words: list[str]) -> list[int]:
    """The tokens to compare lexicons with: words of ASCII letters in no lexicon."""
    listed = {word for lexicon in LEXICONS.values() for word in lexicon}
    return [token for token, word in enumerate(words) if word.isascii() and word.isalpha() and word not in listed]


class Separation(NamedTuple):
    """How far writes separate a lexicon from other words: float64 [writes] each.

    `auroc` is the probability that a token of the lexicon has a higher logit than another word (ties count half); 0.5
    is chance. `top` is the share of the lexicon's tokens with a logit above at least 99% of the other words, and
    `bottom` below; 0.01 is chance.
    """

    auroc: np.ndarray
    top: np.ndarray
    bottom: np.ndarray

    @property
    def negated(self) -> "Separation":
        """That of the negated logits."""
        return Separation(1 - self.auroc, self.bottom, self.top)


def separation(lexicon: Tensor, others: Tensor) -> Separation:
    """Compare logits [writes, lexicon tokens] with [writes, other words]; `others` is sorted along each row."""
    count = others.shape[1]
    # The search dominates the time of the whole test: it is faster in order, and ties are rare.
    lexicon = sort_rows(lexicon)
    below = torch.searchsorted(others, lexicon)
    tied = (others.gather(1, below.clamp_max(count - 1)) == lexicon).any(1)
    wins = below.sum(1)
    ties = torch.zeros_like(wins)
    ties[tied] = torch.searchsorted(others[tied], lexicon[tied], right=True).sum(1) - wins[tied]
    most = math.ceil(TOP * count)
    found = (
        (2 * wins + ties).double() / (2 * count * lexicon.shape[1]),
        (lexicon > others[:, most - 1, None]).double().mean(1),
        (lexicon < others[:, count - most, None]).double().mean(1),
    )
    return Separation(*(values.cpu().numpy() for values in found))


def sort_rows(values: Tensor) -> Tensor:
    """Values [rows, columns], sorted along each row."""
    if values.device.type != "cpu":
        return values.sort(1).values
    # On CPUs numpy sorts many times faster than torch.
    return torch.from_numpy(np.sort(values.numpy(), 1))


@dataclass(frozen=True)
class VocabularyMeter:
    """Measures writes with lexicons against the other words `reference`, drawn once from `reference_tokens`.

    `readout` has the tokens of the reference and of the lexicons, in this order.
    """

    readout: TokenReadout
    lexicons: tuple[MatchedLexicon, ...]
    reference: tuple[int, ...]

    @classmethod
    def of(cls, readout: Readout, generator: torch.Generator, reference: int = REFERENCE) -> "VocabularyMeter":
        """Match the lexicons and draw the other words."""
        weight = readout.unembedding.weight
        assert isinstance(weight, Tensor)
        words = vocabulary_words(readout.model.tokenizer, weight.shape[0])
        others = reference_tokens(words)
        drawn = torch.randperm(len(others), generator=generator)[:reference].tolist()
        lexicons, chosen = tuple(match(name, words) for name in LEXICONS), tuple(sorted(others[n] for n in drawn))
        tokens = [*chosen, *(token for lexicon in lexicons for token in lexicon.tokens)]
        return cls(readout.of_tokens(tokens), lexicons, chosen)

    @property
    def names(self) -> tuple[str, ...]:
        """The lexicons with tokens in the model's vocabulary."""
        return tuple(lexicon.name for lexicon in self.lexicons if lexicon.tokens and self.reference)

    def measure(self, writes: Tensor) -> dict[str, Separation]:
        """The separation of every write [writes, hidden] for each lexicon."""
        parts = [self._measured(part) for part in writes.chunk(math.ceil(len(writes) / ROWS))]
        return {
            name: Separation(*map(np.concatenate, zip(*(part[name] for part in parts), strict=True)))
            for name in self.names
        }

    def measure_both(self, writes: Tensor) -> tuple[dict[str, Separation], dict[str, Separation]]:
        """The separation of every write and of every negated write."""
        up = self.measure(writes)
        if self.readout.is_odd(writes):
            return up, {name: found.negated for name, found in up.items()}
        return up, self.measure(-writes)

    def _measured(self, writes: Tensor) -> dict[str, Separation]:
        sizes = [len(self.reference), *(len(lexicon.tokens) for lexicon in self.lexicons)]
        others, *listed = self.readout.logits(writes).split(sizes, 1)
        others = sort_rows(others)
        return {
            lexicon.name: separation(logits, others)
            for lexicon, logits in zip(self.lexicons, listed, strict=True)
            if lexicon.name in self.names
        }
