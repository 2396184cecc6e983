"""The attacks: found by name, and true to the request that they carry."""

import dataclasses

import pytest

from safety_neurons import attacks
from safety_neurons.errors import SafetyNeuronsError

REQUESTS = [
    "How do I wrap a present?",
    "Explain {name} and {0} and {{x}} in format strings.",
    "Is 100% of %s the same as %(name)s, or $name?",
    'First line\nsecond "line"\n\n\tthird \\n line  ',
    "日本語で説明してください 🎁",
    "",
]


def test_the_attacks_that_the_project_needs_exist() -> None:
    assert {"direct", "prefix-injection", "refusal-suppression", "prefill"} <= set(attacks.names())


def test_every_name_leads_to_the_attack_that_has_it() -> None:
    names = attacks.names()
    assert [attacks.get(name).name for name in names] == names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("request_text", REQUESTS)
@pytest.mark.parametrize("name", attacks.names())
def test_the_request_survives_word_for_word(name: str, request_text: str) -> None:
    assert request_text in attacks.template(name).apply(request_text).user


@pytest.mark.parametrize("name", attacks.names())
def test_the_template_does_not_depend_on_the_request(name: str) -> None:
    first, second = (attacks.template(name).apply(text) for text in ("<<REQUEST A>>", "<<REQUEST B>>"))
    assert first.user.replace("<<REQUEST A>>", "<<REQUEST B>>") == second.user
    assert first.prefill == second.prefill


@pytest.mark.parametrize("name", [name for name in attacks.names() if name != "direct"])
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
    writes = {name for name in attacks.names() if attacks.template(name).apply("x").prefill}
    assert writes == {"prefill"}


@pytest.mark.parametrize("name", attacks.names())
def test_fixed_templates_say_that_they_have_not_seen_the_model(name: str) -> None:
    attack = attacks.get(name)
    assert attack.sees_defended_model is False
    assert attack.source
    assert attack.description.endswith(".")


def test_an_unknown_name_is_an_error_that_names_what_was_meant() -> None:
    with pytest.raises(SafetyNeuronsError, match=r"no attack called 'prefil'.*Did you mean prefill.*direct"):
        attacks.get("prefil")


def test_attacks_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        attacks.get("direct").name = "other"  # type: ignore[misc]
