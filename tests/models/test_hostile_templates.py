"""Chat templates that never end, fill the memory or try to leave the sandbox; and that all others are as they were."""

# Templates are easier to read in one line.
# ruff: noqa: E501

import contextlib
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hostile_models import ENDLESS_TEMPLATES, TURNS, escaping_templates

from builders.children import outcome
from builders.families import FAMILIES, _template
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models import bounded_jinja
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.template import ChatTemplate, Turn, check_syntax

TURNS_OF = (Turn("user", "Hello <b> & 'you'"), Turn("assistant", "Hi"), Turn("user", "Go on.\nPlease"))
FEATURES = (
    "{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.found = true %}{% endif %}{% if loop.index0 % 2 == 0 and not loop.last %}{{ loop.index ~ '/' ~ loop.length }}"
    "{% endif %}{{ m['content'] | trim | replace('\\n', ' ') }}{% endfor %}{{ ns.n }}{{ ns.found }}",
    "{% macro turn(m, end='.') %}{{ m.role.upper() + ': ' + m.content.split('you')[-1] + end }}{% endmacro %}"
    "{% for m in messages[1:] %}{{ turn(m) }}{% endfor %}{{ turn(messages[0], end='!') }}",
    "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ messages | map(attribute='role') | join(', ') }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ (messages | first).content | length }}",
    "{% for m in messages if m.role in ['user', 'system'] %}{{ m.content }}{% else %}none{% endfor %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% continue %}"
    "{% endif %}{{ m.content }}{% if loop.index > 1 %}{% break %}{% endif %}{% endfor %}{{ tools is none }}{{ bos_token }}",
    "{%- for m in messages -%}\n  {{- m.content }}\n  {% set x %}<{{ m.role }}>{% endset %}\n{{ x }}\n{%- endfor %}\n\n",
    "{{ range(3) | list }}{{ 'a' * 3 }}{{ [1] + [2] }}{{ {'a': 1}.items() | list }}{{ '%s-%s' % ('a', 1) }}{{ 7 // 2 }}{{ 2 ** 3 }}"
    "{{ '{} {x}'.format(1, x=2) }}{{ dict(a=1) }}{{ messages[-1]['content'][::-1] }}{{ undefined_name }}{{ none }}",
    "{% for m in messages | reverse %}{{ m.content }}{{ loop.previtem.role if loop.previtem }}{% endfor %}"
    "{{ messages | map('string') | map('length') | sum }}{{ messages | groupby('role') | length }}",
    "{% call(x) wrap() %}{{ x }}{% endcall %}{% macro wrap() %}{{ caller('in') }}{% endmacro %}",
    "{% filter upper %}{{ messages[0].content }}{% endfilter %}{{ add_generation_prompt }}",
)


def with_template(model: ChatModel, text: str) -> ChatTemplate:
    model.tokenizer.chat_template = text
    return ChatTemplate(model.tokenizer, model.name, {})


@pytest.mark.parametrize("text", [*(pytest.param(each, id=str(index)) for index, each in enumerate(FEATURES))])
def test_templates_write_what_transformers_writes(text: str, model: ChatModel) -> None:
    tokenizer = model.tokenizer
    messages = [turn._asdict() for turn in TURNS_OF]
    tokenizer.bos_token = "<s>"
    for answer in (True, False):
        expected = outcome_of(
            lambda answer=answer: tokenizer.apply_chat_template(
                messages, chat_template=text, tokenize=False, add_generation_prompt=answer
            )
        )
        written = outcome_of(
            lambda answer=answer: with_template(model, text)._apply(TURNS_OF, frozenset(), answer=answer)
        )
        assert written == expected or (expected.startswith("! ") and written.endswith(expected[2:]))


def outcome_of(render: object) -> str:
    try:
        return str(render())  # type: ignore[operator]
    except Exception as error:  # noqa: BLE001 (both are compared, whatever they say)
        return f"! {error}"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_templates_of_the_families_are_far_from_the_limits(name: str) -> None:
    template = bounded_jinja.BoundedEnvironment(lambda form: "2024").bounded(_template(FAMILIES[name]))
    messages = [{"role": role, "content": "word " * 200} for role in ("user", "assistant") * 20]
    spent = []
    original = bounded_jinja._Budget.spend
    monkey = pytest.MonkeyPatch()

    def noted(budget: bounded_jinja._Budget, steps: float) -> None:
        spent.append(steps)
        original(budget, steps)

    monkey.setattr(bounded_jinja._Budget, "spend", noted)
    with monkey.context():
        bounded_jinja.render(template, messages, add_generation_prompt=True, bos_token="", eos_token="")
    monkey.undo()
    assert 0 < sum(spent) < bounded_jinja.MINIMUM_STEPS / 10


@pytest.mark.parametrize("name", ENDLESS_TEMPLATES)
def test_an_endless_template_is_stopped_and_named(name: str, model: ChatModel) -> None:
    text = ENDLESS_TEMPLATES[name]

    def render() -> None:
        with_template(model, TURNS + text).render((Turn("user", "Hello"),))

    start = time.monotonic()
    said = outcome(render, seconds=60, memory=2 << 30)
    assert said.startswith(f"error: The chat template of {model.name} "), said
    assert time.monotonic() - start < 45


@pytest.mark.parametrize("name", escaping_templates(Path("marker")))
def test_no_template_leaves_the_sandbox(name: str, model: ChatModel, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    template = with_template(model, TURNS + escaping_templates(marker)[name])
    written = ""
    with contextlib.suppress(SafetyNeuronsError):
        written = template.render((Turn("user", "Hello"),))
    assert "<class" not in written
    assert not marker.exists()


def test_a_long_conversation_has_a_larger_budget(model: ChatModel) -> None:
    turns = tuple(Turn(role, "word " * 2000) for role in ("user", "assistant") * 30)
    quadratic = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for o in messages[:10] %}{% if o == m %}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    text = with_template(model, quadratic).render(turns[:-1])
    assert text.count("word ") == 2000 * 59


def test_a_template_from_a_file_is_checked_before_it_is_used() -> None:
    with pytest.raises(SafetyNeuronsError, match=r"mine\.jinja is not valid Jinja: it is nested too deeply"):
        check_syntax("{{" + "(" * 20_000, "mine.jinja")
    with pytest.raises(SafetyNeuronsError, match="at most"):
        check_syntax(TURNS + " " * bounded_jinja.MAX_SOURCE, "mine.jinja")


def test_options_of_the_caller_reach_the_template(model: ChatModel) -> None:
    template = with_template(model, TURNS + "{{ mine.a }}{{ eos_token }}")
    assert replace(template, options={"mine": {"a": 5}}).render((Turn("user", "Hi"),)).endswith("5<|end|>")
