"""How far a write sets the words of a lexicon apart from other words: the statistic of the vocabulary test."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from safety_neurons.explain.lexicon import (
    LEXICONS,
    MatchedLexicon,
    match,
    reference_tokens,
    vocabulary_words,
)
from safety_neurons.explain.readout import Readout

# How many other words a lexicon is compared with. All writes meet the same ones, so drawing more adds little.
REFERENCE = 2000
# A lexicon's token counts as one of a write's top words when its logit is above that of this share of other words.
TOP = 0.99
# How many writes are measured at once.
ROWS = 1000


class Separation(NamedTuple):
    """Both float64 [writes].

    `auroc` is the chance that a token of the lexicon has a higher logit than another word (ties count half): 0.5
    where the write does not know the lexicon. `top` is the share of the lexicon's tokens whose logit is above that
    of at least 99% of the other words; 0.01 is chance.
    """

    auroc: np.ndarray
    top: np.ndarray


def separation(lexicon: Tensor, others: Tensor) -> Separation:
    """Compare logits [writes, lexicon tokens] with [writes, other words]; `others` is sorted along each row."""
    count = others.shape[1]
    below = torch.searchsorted(others, lexicon)
    # Ties are rare, and searching is what the whole test spends its time on.
    tied = (others.gather(1, below.clamp_max(count - 1)) == lexicon).any(1)
    upto = below.clone()
    upto[tied] = torch.searchsorted(others[tied], lexicon[tied], right=True)
    auroc = (below + upto).double().mean(1) / (2 * count)
    return Separation(auroc.cpu().numpy(), (below >= TOP * count).double().mean(1).cpu().numpy())


@dataclass(frozen=True)
class VocabularyMeter:
    """Measures writes with the lexicons that have tokens in the model's vocabulary.

    `reference` are the other words' tokens (see `lexicon.reference_tokens`), drawn once.
    """

    readout: Readout
    lexicons: tuple[MatchedLexicon, ...]
    reference: tuple[int, ...]

    @classmethod
    def of(cls, readout: Readout, generator: torch.Generator, reference: int = REFERENCE) -> "VocabularyMeter":
        """Look the lexicons up and draw the other words."""
        weight = readout.unembedding.weight
        assert isinstance(weight, Tensor)
        words = vocabulary_words(readout.model.tokenizer, weight.shape[0])
        others = reference_tokens(words)
        drawn = torch.randperm(len(others), generator=generator)[:reference].tolist()
        return cls(readout, tuple(match(name, words) for name in LEXICONS), tuple(sorted(others[n] for n in drawn)))

    @property
    def names(self) -> tuple[str, ...]:
        """The lexicons that can be measured."""
        return tuple(lexicon.name for lexicon in self.lexicons if lexicon.tokens and self.reference)

    def measure(self, writes: Tensor) -> dict[str, Separation]:
        """For each lexicon the separation of every write [writes, hidden]."""
        sizes = [len(self.reference), *(len(lexicon.tokens) for lexicon in self.lexicons)]
        tokens = torch.tensor([*self.reference, *(token for lexicon in self.lexicons for token in lexicon.tokens)])
        found: dict[str, list[Separation]] = {name: [] for name in self.names}
        for part in writes.split(ROWS):
            others, *own = self.readout.logits(part, tokens).split(sizes, 1)
            # numpy sorts floats many times faster than torch does on CPUs.
            others = (
                torch.from_numpy(np.sort(others.cpu().numpy(), 1))
                if others.device.type == "cpu"
                else others.sort(1).values
            )
            for lexicon, logits in zip(self.lexicons, own, strict=True):
                if lexicon.name in found:
                    found[lexicon.name].append(separation(logits.contiguous(), others))
        return {name: Separation(*map(np.concatenate, zip(*parts, strict=True))) for name, parts in found.items()}
