"""Words of refusal and words of compliance, fixed before any neuron was projected on them.

The lists hold what answers are made of, not what requests are about: "illegal" is how a refusal judges, "theft" is
only a topic. Words that stand in both kinds of answers ("help", "assist", "I", "not") are in neither list.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

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


@dataclass(frozen=True)
class MatchedLexicon:
    """A lexicon in one model's vocabulary: the ids of its tokens, and the words that are no single token there."""

    name: str
    tokens: tuple[int, ...]
    missing: tuple[str, ...]


def vocabulary_words(tokenizer: PreTrainedTokenizerBase, size: int) -> list[str]:
    """The text of tokens 0 to `size` - 1 as words: small letters, no space around them; "" for special tokens."""
    known = min(len(tokenizer), size)
    special = set(tokenizer.all_special_ids)
    texts = tokenizer.batch_decode([[token] for token in range(known)])
    words = ["" if token in special else text.strip().lower() for token, text in enumerate(texts)]
    return words + [""] * (size - known)


def match(name: str, words: list[str]) -> MatchedLexicon:
    """Find a lexicon in a vocabulary (`vocabulary_words`): whole tokens in any case, with or without a leading space.

    A word that the tokenizer splits has no token of its own and is left out, and named in `missing`: its pieces ("un"
    of "unethical") begin many other words.
    """
    wanted = LEXICONS[name]
    places: dict[str, list[int]] = {word: [] for word in wanted}
    for token, word in enumerate(words):
        if word in places:
            places[word].append(token)
    found = sorted(token for tokens in places.values() for token in tokens)
    return MatchedLexicon(name, tuple(found), tuple(word for word in wanted if not places[word]))


def reference_tokens(words: list[str]) -> list[int]:
    """What a lexicon is compared with: the tokens that are words of ASCII letters, like its own, in no lexicon."""
    ours = {word for lexicon in LEXICONS.values() for word in lexicon}
    return [token for token, word in enumerate(words) if word.isascii() and word.isalpha() and word not in ours]
