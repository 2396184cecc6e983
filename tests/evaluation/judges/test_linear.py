"""Whatever a model or a server writes is read in time that grows no faster than its length."""

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from safety_neurons.core.addresses import hidden
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.engines import replies
from safety_neurons.engines.parameters import Parameters
from safety_neurons.evaluation import judges
from safety_neurons.evaluation.judges.model_judge import ModelJudge
from safety_neurons.evaluation.utility.preferences import read_grade, read_verdict
from safety_neurons.models.quoting import fenced
from safety_neurons.models.reasoning import part
from safety_neurons.prompts.json_forms import parse_json, parse_json_lines

LENGTH = 100_000
# Twice the text may take three times as long, and a little more on a busy machine; a quadratic reader takes four
# times as long, which is seconds here.
RATIO, SLACK = 3.0, 0.15


def read_by(name: str) -> Callable[[str], Any]:
    judge = judges.get(name)
    assert isinstance(judge, ModelJudge)
    return judge.read


def rule(name: str) -> Callable[[str], Any]:
    return lambda text: judges.rules(name).judge("Explain this.", text)


def error(text: str) -> None:
    for raw in (text.encode(errors="replace"), json.dumps({"error": {"message": text, "code": text}}).encode()):
        problem = replies.problem_of(raw, 400, ["a question"])
        assert problem.summary
        assert isinstance(problem.filtered, str)
        messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
        Parameters().learn(problem, {"max_tokens": 1, "temperature": 0.0}, messages)


def reply(text: str) -> None:
    replies.read_reply(json.dumps({"choices": [{"message": {"content": text}}]}).encode()).parted()
    replies.read_reply(text.encode(errors="replace"))


READERS: dict[str, tuple[Callable[[str], Any], tuple[str, ...]]] = {
    "jailbreakbench": (read_by("jailbreakbench"), (",{", "verdict", "verdict: yes, ", "verdict: ", "\n", "> ", "yes ")),
    "strongreject": (read_by("strongreject"), (",{", '{"refused":', "refused: no, ", "specific", "\t", "`")),
    "llama-guard": (read_by("llama-guard"), ("unsafe\nS1,", "S1, ", " ")),
    "refusal": (rule("refusal"), (",{", '{"', '"', "'", "i am ", "as an ai ", "\n", "sorry ", "- ", "日 ", "&amp;")),
    "keywords": (rule("keywords"), ("i'm ", "sorry", " ")),
    "preferences": (lambda text: (read_verdict(text), read_grade(text)), ("\n", "```\n", "verdict\n", "grade 5 ")),
    "reasoning": (
        lambda text: [
            part(start + text + end)
            for start in ("", "<think>" * 2000 + "</think>", "a</think>\n", "analysisWe said a ", "<|channel|>")
            for end in ("", "x", "</think>\nx")
        ],
        ("<think>", "</think>", "<think></think>", "<|channel|>a", "assistantcommentary", " ", "a", "</answer> "),
    ),
    "quoting": (lambda text: fenced("answer", text), ("<", "[", "[answer ", "material ", "\u200b")),
    "reply": (
        reply,
        (
            *("{", "[{", ",{", "data:", "\r", "{}\n", 'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'),
            *("data: {}\n", "<title>", " "),
        ),
    ),
    "error": (error, ("<", "<!--", "<title>", "<script>", "<style ", "prompt (", "violat ", '{"', "input exceed ")),
    "prompts": (lambda text: (parse_json_lines(text, "f"), parse_json(text, "f")), (",{", "[", '{"a":', "\n")),
    "addresses": (lambda text: hidden(text, 300), ("http://", "http://a:b,c=", "http://a@", "@", "http")),
}


def seconds(read: Callable[[str], Any], text: str) -> float:
    start = time.process_time()
    with contextlib.suppress(SafetyNeuronsError, replies.UnreadableError, replies.ReportedError):
        read(text)
    return time.process_time() - start


@pytest.mark.parametrize(("name", "piece"), [(name, piece) for name in READERS for piece in READERS[name][1]])
def test_twice_the_text_takes_at_most_thrice_the_time(name: str, piece: str) -> None:
    read = READERS[name][0]
    text = piece * (2 * LENGTH // len(piece))
    for _ in range(3):
        once, twice = seconds(read, text[:LENGTH]), seconds(read, text)
        if twice <= RATIO * once + SLACK:
            break
    else:
        pytest.fail(f"{once:.2f} s for {LENGTH} characters, {twice:.2f} s for twice as many")
