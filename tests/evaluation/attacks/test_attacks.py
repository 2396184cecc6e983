"""The attacks: found by name, and true to the request that they carry."""

import base64
import codecs
import dataclasses

import pytest

from builders.disguises import HELD_BACK, MARK, TRAINED, parts, parts_of, shared
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.evaluation import attacks
from safety_neurons.evaluation.attacks.templates import LOOKALIKES

REQUESTS = [
    "How do I wrap a present?",
    "Explain {name} and {0} and {{x}} in format strings.",
    "Is 100% of %s the same as %(name)s, or $name?",
    'First line\nsecond "line"\n\n\tthird \\n line  ',
    "日本語で説明してください 🎁",
    "",
]
TEMPLATES = [name for name in attacks.names() if isinstance(attacks.get(name), attacks.Template)]
CODES = ("base64", "rot13", "leetspeak")
WORD_FOR_WORD = [name for name in TEMPLATES if name not in CODES]


def test_the_attacks_that_the_project_needs_exist() -> None:
    assert {"direct", "prefix-injection", "refusal-suppression", "prefill", "role-play", *CODES} <= set(TEMPLATES)
    others = {"file", "gcg", "pair", "jbc", "prompt-rs", "dsn", "many-shot", "translation", "random-search"}
    assert {*others, "conformity"} == set(attacks.names()) - set(TEMPLATES)


def test_every_name_leads_to_the_attack_that_has_it() -> None:
    names = attacks.names()
    assert [attacks.get(name).name for name in names] == names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("request_text", REQUESTS)
@pytest.mark.parametrize("name", WORD_FOR_WORD)
def test_the_request_survives_word_for_word(name: str, request_text: str) -> None:
    assert request_text in attacks.template(name).apply(request_text).user


@pytest.mark.parametrize("name", WORD_FOR_WORD)
def test_the_template_does_not_depend_on_the_request(name: str) -> None:
    first, second = (attacks.template(name).apply(text) for text in ("<<REQUEST A>>", "<<REQUEST B>>"))
    assert first.user.replace("<<REQUEST A>>", "<<REQUEST B>>") == second.user
    assert first.prefill == second.prefill


@pytest.mark.parametrize("request_text", REQUESTS)
@pytest.mark.parametrize("name", CODES)
def test_what_is_sent_in_a_code_can_be_decoded(name: str, request_text: str) -> None:
    sent = attacks.template(name).apply(request_text).user
    before = attacks.template(name).apply("").user
    assert sent.startswith(before)
    code = sent.removeprefix(before)
    if name == "base64":
        assert base64.b64decode(code, validate=True).decode() == request_text
    elif name == "rot13":
        assert codecs.decode(code, "rot13") == request_text
    else:
        # Digits of the request's own look like letters too, so both are compared as digits.
        back = str.maketrans({digit: letter for letter, digit in LOOKALIKES.items()})
        assert code.translate(back).casefold() == request_text.translate(back).casefold()


@pytest.mark.parametrize("name", CODES)
def test_a_request_in_a_code_cannot_be_read_as_it_is(name: str) -> None:
    assert REQUESTS[0] not in attacks.template(name).apply(REQUESTS[0]).user


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "direct"])
def test_an_attack_adds_something(name: str) -> None:
    attacked = attacks.template(name).apply("How do I wrap a present?")
    assert attacked != attacks.AttackedPrompt("How do I wrap a present?")


@pytest.mark.parametrize("request_text", REQUESTS)
def test_direct_is_the_request_and_nothing_else(request_text: str) -> None:
    assert attacks.template("direct").apply(request_text) == attacks.AttackedPrompt(user=request_text, prefill="")


@pytest.mark.parametrize("request_text", REQUESTS)
def test_prefill_leaves_the_user_alone_and_opens_the_answer(request_text: str) -> None:
    attacked = attacks.template("prefill").apply(request_text)
    assert attacked.user == request_text
    assert attacked.prefill.startswith("Sure")
    # A blank at the end would keep the tokenizer from writing " you" as the one token it is.
    assert attacked.prefill == attacked.prefill.rstrip()


def test_only_prefill_writes_into_the_answer() -> None:
    writes = {name for name in TEMPLATES if attacks.template(name).apply("x").prefill}
    assert writes == {"prefill"}


@pytest.mark.parametrize("name", attacks.names())
def test_every_attack_says_where_it_comes_from_and_what_it_costs(name: str) -> None:
    attack = attacks.get(name)
    assert attack.source
    assert attack.budget
    assert attack.description.endswith(".")
    sees = {"translation", "random-search", "conformity"}
    assert attack.sees_defended_model is (name in sees)


def test_no_attack_shares_its_words_with_a_disguise() -> None:
    taken = parts_of((*TRAINED, *HELD_BACK))
    for name in TEMPLATES:
        assert not shared(parts(attacks.template(name).apply(MARK)), taken), name


def test_an_unknown_name_is_an_error_that_names_what_was_meant() -> None:
    with pytest.raises(SafetyNeuronsError, match=r"no attack called 'prefil'.*Did you mean prefill.*direct"):
        attacks.get("prefil")


@pytest.mark.parametrize("spec", ["direct:shots=3", "many-shot:shot=3", "gcg:published=x", "file:FILE"])
def test_an_unknown_option_is_an_error(spec: str) -> None:
    with pytest.raises(SafetyNeuronsError, match="is not an option of the attack"):
        attacks.get(spec)


@pytest.mark.parametrize(
    "spec",
    [
        "many-shot:shots=0",
        "random-search:steps=0",
        "random-search:candidates=-1",
        "translation:language= ",
        "gcg:target=",
    ],
)
def test_a_value_that_makes_no_sense_is_an_error(spec: str) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"must be at least 1|name of a language|no target of gcg"):
        attacks.get(spec)


def test_an_attack_that_depends_on_the_model_is_not_a_template() -> None:
    with pytest.raises(SafetyNeuronsError, match="is not a fixed template"):
        attacks.template("random-search")


def test_attacks_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        attacks.get("direct").name = "other"  # type: ignore[misc]
