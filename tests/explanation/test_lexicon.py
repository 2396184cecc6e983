"""The lexicons as they are shipped, and as they are found in a vocabulary."""

import itertools

from safety_neurons.explanation.lexicon import LEXICONS, match, reference_tokens, vocabulary_words
from safety_neurons.models.chat import ChatModel

ROWS_TOO_MANY = 7


def words_of(model: ChatModel) -> list[str]:
    return vocabulary_words(model.tokenizer, model.model.get_output_embeddings().weight.shape[0])


def test_lexicons_are_plain_words_and_share_none() -> None:
    everything = list(itertools.chain(*LEXICONS.values()))
    assert len(everything) == len(set(everything)) > 80
    assert all(word.isascii() and word.isalpha() and word == word.lower() for word in everything)
    # They stand in refusals and in compliant answers alike.
    assert not {"i", "not", "help", "assist", "can"} & set(everything)


def test_tokens_match_in_any_case_with_and_without_a_space(worded: ChatModel) -> None:
    words = words_of(worded)
    for name, lexicon in LEXICONS.items():
        found = match(name, words)
        assert list(found.tokens) == [
            token
            for token in range(len(worded.tokenizer))
            if worded.tokenizer.decode([token]).strip().casefold() in lexicon
        ]
    refusal = match("refusal", words)
    texts = [worded.tokenizer.decode([token]) for token in refusal.tokens]
    assert sorted(texts) == sorted([" sorry", "Sorry", " illegal", "Illegal", " CANNOT", "refuse"])


def test_words_that_are_split_are_named_and_none_of_their_pieces_counts(worded: ChatModel, model: ChatModel) -> None:
    words = words_of(worded)
    found = match("refusal", words)
    assert set(LEXICONS["refusal"]) - set(found.missing) == {"sorry", "illegal", "cannot", "refuse"}
    nothing = match("refusal", words_of(model))
    assert nothing.tokens == ()
    assert nothing.missing == LEXICONS["refusal"]


def test_special_tokens_and_rows_past_the_tokenizer_are_no_words(worded: ChatModel) -> None:
    worded.tokenizer.add_special_tokens({"additional_special_tokens": ["sorry"]})
    words = words_of(worded)
    assert len(words) == worded.model.get_output_embeddings().weight.shape[0] == len(worded.tokenizer) + 6
    assert words[-6:] == [""] * 6
    special = worded.tokenizer.convert_tokens_to_ids("sorry")
    assert words[special] == ""
    assert special not in match("refusal", words).tokens


def test_other_words_are_ascii_words_of_no_lexicon(worded: ChatModel) -> None:
    reference = reference_tokens(words_of(worded))
    texts = {worded.tokenizer.decode([token]) for token in reference}
    assert {" word", " Bana", "a", "Z"} <= texts
    assert not {" sorry", "Sure", "<pad>", "7", ".", "\n", " "} & texts
    assert all(text.strip().isascii() and text.strip().isalpha() for text in texts)
