"""A thought is parted from the answer, whatever its marks are, and may be longer than the answer."""

import contextlib
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from builders.models import SPECIAL, TEMPLATE, tiny_model, tiny_tokenizer
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import UNFINISHED, Completion, complete, complete_to
from safety_neurons.models.load import load
from safety_neurons.models.reasoning import MARKS, opens_thought, part, texts_of, thinking_of, with_prefill

THOUGHT = "They want a cake. I must not refuse, though I can't say why."
SWITCHED = TEMPLATE.replace(
    "<|assistant|>{% endif",
    "<|assistant|>{% if not enable_thinking | default(true) %}<think>\n\n</think>\n\n{% endif %}{% endif",
)
OPENED = TEMPLATE.replace("<|assistant|>{% endif", "<|assistant|><think>\n{% endif")


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_every_kind_of_thought_is_parted_from_its_answer(opening: str, closing: str) -> None:
    reasoning, answer = f"{opening}\n{THOUGHT}\n{closing}\n\n", "Bake it."
    assert part(reasoning + answer) == (reasoning, answer, False)
    assert part(f"\n {reasoning}{answer}") == (f"\n {reasoning}", answer, False)
    # Some families think again after an empty thought.
    empty = f"{opening}\n\n{closing}\n\n"
    assert part(empty + reasoning + answer) == (empty + reasoning, answer, False)
    for end in range(len(opening), len(reasoning) - len(closing) - 2):
        assert part(reasoning[:end]).answer == ""
        assert part(reasoning[:end]).unfinished


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_a_thought_that_the_prompt_opened_has_only_an_end(opening: str, closing: str) -> None:
    rest = f"{THOUGHT}\n{closing}\n\n"
    assert part(f"{rest}Bake it.", inside=True) == (rest, "Bake it.", False)
    assert part(THOUGHT, inside=True) == (THOUGHT, "", True)
    assert opens_thought(f"<|user|>Hi<|assistant|>{opening}\n") == closing
    assert not opens_thought(f"<|user|>Hi<|assistant|>{opening}\n\n{closing}\n\n")
    if not closing[0].isalpha():
        # A server may drop the opening mark.
        assert part(f"{rest}Bake it.") == (rest, "Bake it.", False)


def test_channels_are_parted() -> None:
    thought = f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>"
    assert part(f"{thought}Bake it.<|return|>") == (thought, "Bake it.", False)
    assert part(f"{thought}Bake") == (thought, "Bake", False)
    assert part(f"<|channel|>analysis<|message|>{THOUGHT}").unfinished
    assert not part(f"<|channel|>analysis<|message|>{THOUGHT}<|end|>").unfinished


@pytest.mark.parametrize(
    "text",
    [
        "Bake it.",
        "",
        "I think </think> is a tag of HTML.",
        "Write `<think>` before it and `</think>` after it.",
        "Here is my response:\nBake it.",
        "In this thinking exercise, bake it.",
        "x < 3 and y > 4",
    ],
)
def test_an_answer_without_a_thought_stays_whole(text: str) -> None:
    assert part(text) == ("", text, False)


def test_marks_around_the_answer_are_left_out() -> None:
    assert part(f"<think>{THOUGHT}</think>\n<answer>\nBake it.\n</answer>").answer == "Bake it."


def test_marks_that_are_special_tokens_are_read() -> None:
    tokenizer = tiny_tokenizer()
    plain = tokenizer("<think>Hm</think>Bake.", add_special_tokens=False)["input_ids"]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    ids = tokenizer("<|user|><think>Hm</think>Bake.<|end|><pad>", add_special_tokens=False)["input_ids"]
    assert len(ids) < len(plain)
    assert texts_of(tokenizer, [ids, plain, []]) == ["<think>Hm</think>Bake."] * 2 + [""]
    # "<|end|>" is a part of a mark only in tokenizers that have channels.
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|channel|>", "<|message|>"]})
    text = "<|channel|>final<|message|>Bake.<|end|>"
    assert texts_of(tokenizer, [tokenizer(text, add_special_tokens=False)["input_ids"]]) == [text]


def thinker(template: str = TEMPLATE, marks: bool = True, architecture: str = "llama", **changes: int) -> ChatModel:
    model = tiny_model(architecture, **changes)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    if marks:
        tokenizer.add_tokens(["<think>", "</think>"])
        model.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return ChatModel(model.model, tokenizer, "thinker", "x", reasoning_tokens=60)


@contextlib.contextmanager
def saying(model: ChatModel, rows: Sequence[str]) -> Iterator[None]:
    """The model writes these texts whatever it is asked, and then only dots."""
    scripts = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in rows]
    dot = model.tokenizer(".", add_special_tokens=False)["input_ids"][0]
    step = -1

    def force(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        nonlocal step
        step += 1
        forced = torch.zeros_like(output)
        for row, script in enumerate(scripts):
            forced[row, -1, script[step] if step < len(script) else dot] = 1
        return forced

    head = model.model.get_output_embeddings()
    assert head is not None
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(head.register_forward_hook(force).remove)
        yield


def test_a_thought_does_not_use_up_the_tokens_of_the_answer() -> None:
    model = thinker()
    rows = [
        "<think>A long thought of a cake.</think>Bake the cake now.",
        "Bake the cake now.",
        "Bake.<|end|>",
        "<think>A thought that goes on and on, and does not come to an end before the limit is there",
        "<think>Hm.</think>Bake.<|end|>",
        "<think></think>Bake the cake now.",
    ]
    with saying(model, rows):
        found = complete(model, [model.render("Hi")] * len(rows), 8)
    assert found == [
        Completion("Bake the", True, "<think>A long thought of a cake.</think>"),
        Completion("Bake the", True),
        Completion("Bake.", False),
        Completion("", True, rows[3][:74]),
        Completion("Bake.", False, "<think>Hm.</think>"),
        Completion("Bake the", True, "<think></think>"),
    ]
    assert [one.unscored for one in found] == ["", "", "", UNFINISHED, "", ""]
    # Cut to this length, longer answers are the same.
    with saying(model, rows):
        cut = complete_to(model, [model.render("Hi")] * len(rows), (8, 20))
    assert [answers[8] for answers in cut] == found
    assert [answers[20].text for answers in cut][:3] == ["Bake the cake now...", "Bake the cake now...", "Bake."]
    # Alone, each says the same.
    for row, expected in zip(rows, found, strict=True):
        with saying(model, [row]):
            assert complete(model, [model.render("Hi")], 8) == [expected]


def test_a_prompt_may_open_the_thought_and_a_prefill_closes_it() -> None:
    model = thinker(OPENED)
    text = model.render("Hi")
    with saying(model, ["Hm.</think>\n\nBake the cake."]):
        assert complete(model, [text], 8) == [Completion("Bake t", True, "Hm.</think>\n\n")]
    assert model.render("Hi", "Sure,") == f"{text.rstrip()}\n</think>\n\nSure,"
    assert with_prefill("<|assistant|>", "Sure,") == "<|assistant|>Sure,"


def test_thinking_is_switched_off_unless_it_is_asked_for() -> None:
    model = thinker(SWITCHED)
    asked = load(model.model, model.tokenizer, template_options={"enable_thinking": True})
    quiet = load(model.model, model.tokenizer)
    assert (thinking_of(asked), thinking_of(quiet)) == ("on", "off")
    assert quiet.render("Hi").endswith("<|assistant|><think>\n\n</think>\n\n")
    assert asked.render("Hi").endswith("<|assistant|>")
    assert (asked.may_think, quiet.may_think) == (True, False)
    assert thinking_of(thinker(OPENED)) == "on"
    # A template that says nothing: the marks in the vocabulary show that the model may think.
    assert [thinking_of(thinker(marks=marks)) for marks in (True, False)] == ["none", "none"]
    assert [thinker(marks=marks).may_think for marks in (True, False)] == [True, False]


def test_the_special_tokens_of_the_builders_hold_no_mark() -> None:
    assert not any("think" in token for token in SPECIAL)


def test_an_end_that_is_no_special_token_is_not_in_the_answer() -> None:
    model = thinker(marks=False)
    assert model.model.generation_config is not None
    model.model.generation_config.eos_token_id = model.tokenizer("#", add_special_tokens=False)["input_ids"]
    with saying(model, ["Bake it.#", "Bake it now, and then"]):
        found = complete(model, [model.render("Hi")] * 2, 12)
    assert found == [Completion("Bake it.", False), Completion("Bake it now,", True)]


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_a_thought_ends_with_the_context(architecture: str) -> None:
    model = thinker(architecture=architecture, max_position_embeddings=64)
    text = model.render("Hi")
    prompt = len(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    with saying(model, ["<think>" + "Hm. " * 40, "Bake it."]):
        found = complete(model, [text, text], 8)
    assert found == [
        Completion("", True, ("<think>" + "Hm. " * 40)[: 64 - prompt + len("<think>") - 1]),
        Completion("Bake it.", True),
    ]


@pytest.mark.parametrize("between", ["assistantfinal", "assistantcommentaryI call nothing.assistantfinal"])
def test_channels_without_their_marks(between: str) -> None:
    """As servers send them that leave out special tokens."""
    assert part(f"analysisWe must refuse.{between}I'm sorry.") == (
        f"analysisWe must refuse.{between}",
        "I'm sorry.",
        False,
    )
    assert part("analysisWe must ref") == ("analysisWe must ref", "", True)
    for text in ("analysis of cakes: bake.", "The analysisWe did.assistantfinalSo.", "analysisResults = model.fit(x)"):
        assert part(text) == ("", text, False)


def test_a_thought_within_a_thought() -> None:
    assert part("<think>a<think>b</think>c</think>Bake.") == ("<think>a<think>b</think>c</think>", "Bake.", False)
    assert part("<think>I open with <think>.</think>Bake.").answer == "Bake."
