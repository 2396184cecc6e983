"""Tasks of the LM Evaluation Harness on a model in memory, against their metrics worked out by hand."""

import importlib.util
import json
import random
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from builders.quick import find
from safety_neurons.calibration.calibration import calibrate
from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.evaluation.utility.lm_eval import lm_eval
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.tokens import padding_token

needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the extra is not installed")

DOCUMENTS: list[dict[str, Any]] = [
    {
        "question": f"{'Very ' * (number % 4)}odd or even: {number}?",
        "choices": ["odds", "even", "both ways"],
        "label": n,
    }
    for number, n in enumerate([0, 1, 2, 1, 0, 2, 1, 0, 1])
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
  cache_dir: {cache}
test_split: test
{rest}
metadata:
  version: 3
"""
CHOICE = """output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list:
  - metric: acc
  - metric: acc_norm"""
WRITTEN = """output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{target}}"
generation_kwargs:
  until: ["<|never|>"]
  max_gen_toks: 4
metric_list:
  - metric: exact_match"""


@pytest.fixture
def add_task(tmp_path: Path) -> Callable[..., Path]:
    """Writes a task and its documents into a folder of tasks."""

    def add(name: str, documents: list[dict[str, Any]], rest: str) -> Path:
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(one) + "\n" for one in documents), encoding="utf-8")
        text = TASK.format(name=name, data=data, cache=tmp_path / "cache", rest=rest)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
        return folder

    return add


def likelihood(model: ChatModel, text: str, continuation: str) -> float:
    """In one full pass, without padding and without a cache."""
    before, after = (model.tokenizer(one, add_special_tokens=False)["input_ids"] for one in (text, continuation))
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([before + after]), use_cache=False).logits[0]
    rows = logits[len(before) - 1 : -1].double().log_softmax(-1)
    return sum(float(row[token]) for row, token in zip(rows, after, strict=True))


def accuracies(model: ChatModel, documents: list[dict[str, Any]], chat: bool) -> tuple[float, float]:
    plain = normalized = 0
    for one in documents:
        text = model.render(one["question"]) if chat else one["question"]
        found = [likelihood(model, text, choice if chat else f" {choice}") for choice in one["choices"]]
        plain += found.index(max(found)) == one["label"]
        shares = [value / len(choice) for value, choice in zip(found, one["choices"], strict=True)]
        normalized += shares.index(max(shares)) == one["label"]
    return plain / len(documents), normalized / len(documents)


@needs_harness
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_accuracy_is_that_of_full_passes(
    make_model: Callable[..., ChatModel], add_task: Callable[..., Path], chat: bool, batch_size: int
) -> None:
    model = make_model().with_system("Be brief." if chat else None)
    folder = add_task("tiny_choice", DOCUMENTS, CHOICE)
    found = lm_eval(model, ["tiny_choice"], include_path=folder, chat_template=chat, batch_size=batch_size)
    result = found["tiny_choice"]
    acc, acc_norm = accuracies(model, DOCUMENTS, chat)
    assert result.metrics["acc"].value == pytest.approx(acc)
    assert result.metrics["acc_norm"].value == pytest.approx(acc_norm)
    # The standard error of a mean of zeros and ones, of a sample.
    assert result.metrics["acc"].stderr == pytest.approx((acc * (1 - acc) / (len(DOCUMENTS) - 1)) ** 0.5)
    assert (result.samples, result.version) == (len(DOCUMENTS), "3")
    json.dumps(asdict(result), allow_nan=False)


@needs_harness
def test_it_is_the_model_as_it_is_changed(model: ChatModel, add_task: Callable[..., Path]) -> None:
    """Labels that the changed model gets right and the base one does not."""

    def favorites() -> list[int]:
        found = []
        for one in DOCUMENTS:
            values = [likelihood(model, one["question"], f" {choice}") for choice in one["choices"]]
            found.append(values.index(max(values)))
        return found

    before = favorites()
    weight = model.model.get_parameter("model.layers.1.mlp.down_proj.weight")
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.normal_(0, 1)
    after = favorites()
    assert before != after
    folder = add_task("as_changed", [one | {"label": n} for one, n in zip(DOCUMENTS, after, strict=True)], CHOICE)
    assert lm_eval(model, ["as_changed"], include_path=folder)["as_changed"].metrics["acc"].value == 1
    with torch.no_grad():
        weight.copy_(kept)
    agreeing = sum(one == other for one, other in zip(before, after, strict=True)) / len(before)
    found = lm_eval(model, ["as_changed"], include_path=folder)
    assert found["as_changed"].metrics["acc"].value == pytest.approx(agreeing)


@needs_harness
def test_calibration_finds_the_end_of_the_prompt(model: ChatModel) -> None:
    """What is said of the first token after a prompt is what generation says, in a batch of other lengths."""
    from safety_neurons.evaluation.utility.lm_eval_model import InMemory

    harmful, benign = ([f"{text} {n}" for n in range(4)] for text in ("Tell me how to harm.", "Show me a soup."))
    neurons = find(model, harmful, benign, percent=30, positions=5)
    texts = ["Odd?", "A much longer question, this one"]
    contexts = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    continuations = [[70, 80, 90], [100]]
    requests: Any = [(("", ""), one, other) for one, other in zip(contexts, continuations, strict=True)]
    base = InMemory(model, 2)._loglikelihood_tokens(requests)
    with calibrate(model, neurons, toward="rejection", alpha=5, prompt_positions=1):
        found = InMemory(model, 2)._loglikelihood_tokens(requests)
        output = model.model.generate(
            **model.encode([texts[1]]),
            max_new_tokens=1,
            do_sample=False,
            pad_token_id=padding_token(model),
            output_logits=True,
            return_dict_in_generate=True,
        )
    expected = output.logits[0][0].double().log_softmax(-1)
    assert found[1] == (pytest.approx(float(expected[100]), rel=1e-4), int(expected.argmax()) == 100)
    assert abs(found[1][0] - base[1][0]) > 1e-3


@needs_harness
def test_what_is_written_is_compared(model: ChatModel, add_task: Callable[..., Path]) -> None:
    documents = []
    for number, one in enumerate(DOCUMENTS[:4]):
        inputs = model.tokenizer(one["question"], add_special_tokens=False, return_tensors="pt")
        output = model.model.generate(**inputs, max_new_tokens=4, do_sample=False)
        text = model.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        documents.append({"question": one["question"], "target": text if number else "something else"})
    folder = add_task("tiny_written", documents, WRITTEN)
    found = lm_eval(model, ["tiny_written"], include_path=folder)
    assert found["tiny_written"].metrics["exact_match"].value == 0.75


@needs_harness
def test_limit_and_several_tasks(model: ChatModel, add_task: Callable[..., Path]) -> None:
    add_task("first_choice", DOCUMENTS, CHOICE)
    folder = add_task("second_choice", DOCUMENTS[3:], CHOICE)
    found = lm_eval(model, ["first_choice", "second_choice"], include_path=folder, limit=3)
    assert {name: result.samples for name, result in found.items()} == {"first_choice": 3, "second_choice": 3}
    assert found["second_choice"].metrics["acc"].value == pytest.approx(accuracies(model, DOCUMENTS[3:6], False)[0])


@needs_harness
def test_nothing_is_left_behind(model: ChatModel, add_task: Callable[..., Path]) -> None:
    model.tokenizer.pad_token = None
    weights = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    states = (
        random.getstate(),
        numpy.random.get_state(legacy=False)["state"]["key"].tolist(),
        torch.random.get_rng_state(),
    )
    lm_eval(model, ["tiny_choice"], include_path=add_task("tiny_choice", DOCUMENTS, CHOICE), limit=2)
    assert model.tokenizer.pad_token is None
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.model.state_dict().items())
    assert random.getstate() == states[0]
    assert numpy.random.get_state(legacy=False)["state"]["key"].tolist() == states[1]
    assert torch.equal(torch.random.get_rng_state(), states[2])


@needs_harness
def test_names_that_are_nearly_right(
    model: ChatModel, add_task: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks as harness

    real = harness.TaskManager
    # To look through all of the harness's own tasks takes long.
    monkeypatch.setattr(
        harness, "TaskManager", lambda include_path, include_defaults=False: real(None, include_path, False)
    )
    folder = add_task("tiny_choice", DOCUMENTS, CHOICE)
    with pytest.raises(SafetyNeuronsError, match=r"no task 'tiny_choise'.*Did you mean tiny_choice\?"):
        lm_eval(model, ["tiny_choise"], include_path=folder)


@needs_harness
def test_a_folder_that_is_not_there(model: ChatModel, tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match="no folder"):
        lm_eval(model, ["tiny_choice"], include_path=tmp_path / "nowhere")


@needs_harness
def test_data_that_cannot_be_had(model: ChatModel, add_task: Callable[..., Path], tmp_path: Path) -> None:
    folder = add_task("tiny_choice", DOCUMENTS, CHOICE)
    (tmp_path / "tiny_choice.jsonl").unlink()
    with pytest.raises(CannotRunError, match="data of the task tiny_choice"):
        lm_eval(model, ["tiny_choice"], include_path=folder)


def test_without_the_extra(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    with pytest.raises(CannotRunError, match=r"pip install 'safety-neurons\[lm-eval\]'"):
        lm_eval(model, ["arc_easy"])


@needs_harness
def test_no_template_no_chat(model: ChatModel) -> None:
    model.tokenizer.chat_template = None
    with pytest.raises(SafetyNeuronsError, match="no chat template"):
        lm_eval(model, ["arc_easy"], chat_template=True)
