"""Chat templates: nothing of a conversation is lost, repeated or changed, whatever form a template wants."""

import dataclasses
import datetime
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from builders.runs import save_model
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models import template as template_module
from safety_neurons.models.chat import ChatModel, Conversation, Turn
from safety_neurons.models.load import load
from safety_neurons.models.template import named_or_read

SYSTEM = "Be brief and kind."
USER = """Is <b> "5" & 'six' {{ 7 }}\n\n  a number?"""
ROUNDS = Conversation((Turn("user", "Why?"), Turn("assistant", "So."), Turn("user", USER)), "Sure")

HEAD = "{% for m in messages %}<|{{ m['role'] }}|>"
TAIL = "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
PARTS = "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
# What a template may do with content, all of it right.
FORMS = {
    "text": "{{ m['content'] }}",
    "parts": PARTS,
    "trimmed parts": "{% for part in m['content'] %}{{ part['text'] | trim }}{% endfor %}",
    "first part": "{{ m['content'][0]['text'] }}",
    "refuses text": "{% if m['content'] is string %}{{ raise_exception('a list') }}{% endif %}" + PARTS,
    "either": "{% if m['content'] is string %}{{ m['content'] }}{% else %}" + PARTS + "{% endif %}",
    "text of the system, parts of others": "{% if m['role'] == 'system' %}{{ m['content'] }}{% else %}"
    + PARTS
    + "{% endif %}",
}


def with_template(model: ChatModel, template: str) -> ChatModel:
    model.tokenizer.chat_template = template
    return model


@pytest.mark.parametrize("form", FORMS)
def test_content_is_written_in_the_form_that_the_template_wants(form: str, model: ChatModel) -> None:
    plain = model.with_system(SYSTEM).render_conversation(ROUNDS)
    asked = with_template(model, HEAD + FORMS[form] + TAIL).with_system(SYSTEM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert asked.render_conversation(ROUNDS) == plain
        assert asked.render("Hello") != asked.render("Goodbye")
    assert plain.endswith(f"<|user|>{USER}<|end|><|assistant|>Sure")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "leaves out the content of the user turn"),
        ("{{ m['text'] }}", "leaves out the content of the user turn"),
        ("{{ m['content'] }} again: {{ m['content'] }}", "writes 2 times the content of the user turn"),
        ("{{ m['content'] | e }}", "changes .* the content of the user turn"),
        ("{{ m['content'] | tojson }}", "changes .* the content of the user turn"),
        ("{{ m['content'] | upper }}", "leaves out the content of the user turn"),
        ("{{ m['content'] | truncate(9, True, '') }}", "the content of the user turn"),
        ("{{ m['content'] }}{{ range(10 ** 5) | random }}", "another text each time"),
        ("{{ m['content'] + 1 }}", "cannot be rendered"),
        ("{{ 1 // 0 }}", "cannot be rendered"),
    ],
)
def test_content_that_is_lost_or_changed_is_an_error_that_says_what_happened(
    content: str, problem: str, model: ChatModel
) -> None:
    with pytest.raises(SafetyNeuronsError, match=f"chat template of {model.name} .*{problem}"):
        with_template(model, HEAD + content + TAIL).render("Hello")


def test_one_prompt_that_the_template_changes_is_an_error_that_shows_it(model: ChatModel) -> None:
    asked = with_template(model, HEAD + "{{ m['content'].replace('soup', 'salad') }}" + TAIL)
    assert "bread" in asked.render("A recipe for bread")
    with pytest.raises(SafetyNeuronsError, match="'A recipe for soup' is not in the text"):
        asked.render("A recipe for soup")


def test_thoughts_in_earlier_answers_may_be_left_out(model: ChatModel) -> None:
    asked = with_template(model, HEAD + "{{ m['content'].split('</think>')[-1] }}" + TAIL)
    turns = (Turn("user", "Why?"), Turn("assistant", "<think>Hm.</think>So."), Turn("user", "And now?"))
    assert "<|assistant|>So.<|end|>" in asked.render_conversation(Conversation(turns))


@pytest.mark.parametrize(
    ("system", "form"), [("{% if m['role'] != 'system' %}", "parts"), ("{% if m['role'] != 'system' %}", "text")]
)
def test_a_template_without_a_system_role_is_told_once(
    system: str, form: str, make_model: Callable[..., ChatModel]
) -> None:
    template = "{% for m in messages %}" + system + "<|{{ m['role'] }}|>" + FORMS[form] + "<|end|>{% endif %}"
    asked = with_template(make_model(), template + "{% endfor %}<|assistant|>").with_system(SYSTEM)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("default")
        texts = [asked.render(text) for text in ("Hello", "And you?")]
    assert texts[0] == f"<|user|>{SYSTEM}\n\nHello<|end|><|assistant|>"
    assert [str(note.message) for note in notes if "no system role" in str(note.message)] == [
        f"The chat template of {asked.name} has no system role: the prompt is put before the user turn."
    ]


STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m['role'] }}]{{ m['content'] | trim }}{% endfor %}"
)


@pytest.mark.filterwarnings("ignore:The chat template")
def test_strict_turns(model: ChatModel) -> None:
    asked = with_template(model, STRICT + "[assistant]").with_system(SYSTEM)
    expected = f"[user]{SYSTEM}\n\nWhy?[assistant]So.[user]{USER}[assistant]Sure"
    assert asked.render_conversation(ROUNDS) == expected


@pytest.mark.parametrize(
    ("template", "opens"),
    [
        (HEAD + FORMS["text"] + "<|end|>{% endfor %}", False),
        (HEAD + PARTS + "<|end|>{% endfor %}", False),
        (HEAD + FORMS["text"] + TAIL, True),
        (HEAD + FORMS["text"] + TAIL.replace("<|assistant|>", "<|assistant|><think>\n"), True),
        # Llama 2 and Mistral: what ends the user's turn opens the assistant's.
        ("{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>"
         "{% endif %}{% endfor %}", True),
        ("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[answer]", True),
    ],
)  # fmt: skip
def test_a_template_that_opens_no_assistant_turn_is_told(template: str, opens: bool, model: ChatModel) -> None:
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("default")
        with_template(model, template).render("Hello")
    assert ["does not open the assistant's turn" in str(note.message) for note in notes] == [True] * (not opens)


@pytest.mark.parametrize("moment", ["%d %b %Y %H:%M:%S", "%Y-%m-%d", "%B %-d, %Y", "%A %f %j", "%c"])
def test_a_template_that_writes_the_time_writes_the_same_one_always(
    moment: str, model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = f"{{% set now = strftime_now('{moment}') %}}Today is {{{{ now }}}}.\n{HEAD}{FORMS['text']}{TAIL}"
    with pytest.warns(UserWarning, match="current date"):
        text = with_template(model, template).render("Hello")
    assert text.startswith(f"Today is {template_module.TODAY.strftime(moment)}.\n<|user|>Hello")
    assert datetime.datetime.now() > template_module.TODAY


def test_options_of_the_template_take_precedence_over_its_date(model: ChatModel) -> None:
    template = "{% if not date is defined %}{% set date = strftime_now('%Y') %}{% endif %}{{ date }}" + HEAD
    asked = with_template(model, template + FORMS["text"] + TAIL)
    with pytest.warns(UserWarning, match="current date"):
        assert dataclasses.replace(asked, template_options={"date": "1999"}).render("Hello").startswith("1999<|user|>")


TEXT = HEAD + "é {{ m['content'] }}" + TAIL


@pytest.mark.parametrize("encoded", [b"\xef\xbb\xbf" + TEXT.encode(), TEXT.replace("\n", "\r\n").encode()])
def test_a_file_is_read_without_its_mark(encoded: bytes, model: ChatModel, tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_bytes(encoded)
    assert named_or_read(path) == named_or_read(str(path)) == TEXT == named_or_read(TEXT)
    assert load(model.model, model.tokenizer, chat_template=path).render("Hi") == "<|user|>é Hi<|end|><|assistant|>"


def test_a_mark_in_the_tokenizers_template_is_dropped(model: ChatModel) -> None:
    plain = model.render("Hello")
    assert with_template(model, f"\ufeff{model.tokenizer.chat_template}").render("Hello") == plain


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "does not exist"),
        ("folder", "is a folder"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"no template", "holds no Jinja"),
        (TEXT.encode("latin-1"), "not UTF-8"),
        (TEXT.encode("utf-16"), "not UTF-8"),
        (b"{% for m in messages %}\n{{ m }", r"not valid Jinja: .*line 2"),
    ],
)
def test_a_file_that_is_no_template_is_one_paragraph(
    content: bytes | str | None, problem: str, model: ChatModel, tmp_path: Path
) -> None:
    path = tmp_path / "template.jinja"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    with pytest.raises(SafetyNeuronsError, match=f"template.jinja .*{problem}") as error:
        load(model.model, model.tokenizer, chat_template=path)
    assert "\n" not in str(error.value)


def test_transformers_own_tag_is_valid(model: ChatModel) -> None:
    template = HEAD + "{% generation %}{{ m['content'] }}{% endgeneration %}" + TAIL
    assert load(model.model, model.tokenizer, chat_template=template).render("Hello") == model.render("Hello")


def test_named_templates(model: ChatModel) -> None:
    model.tokenizer.chat_template = {"rag": HEAD + "R: {{ m['content'] }}" + TAIL, "tools": "{{ messages }}"}
    with pytest.raises(SafetyNeuronsError, match=r"several chat templates \(rag, tools\) and no default"):
        model.render("Hello")
    chosen = load(model.model, model.tokenizer, chat_template="rag")
    assert chosen.render("Hello") == "<|user|>R: Hello<|end|><|assistant|>"
    # The caller's tokenizer is as it was.
    assert set(model.tokenizer.chat_template) == {"rag", "tools"}
    with pytest.raises(SafetyNeuronsError, match=r"'other' is neither .* has the templates rag, tools"):
        load(model.model, model.tokenizer, chat_template="other")
    model.tokenizer.chat_template = {"default": HEAD + FORMS["text"] + TAIL, "tools": "{{ messages }}"}
    assert model.render("Hello") == "<|user|>Hello<|end|><|assistant|>"


@pytest.mark.parametrize("layout", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_a_template_is_found_in_every_layout(layout: str, model: ChatModel, tmp_path: Path) -> None:
    template = HEAD + PARTS + TAIL
    model.tokenizer.chat_template = None
    save_model(model, tmp_path)
    path = tmp_path / layout
    if layout.endswith(".jinja"):
        path.write_text(template)
    else:
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | {"chat_template": template}))
    loaded = load(tmp_path, device="cpu", dtype="float32")
    assert loaded.render("Hello") == "<|user|>Hello<|end|><|assistant|>"
