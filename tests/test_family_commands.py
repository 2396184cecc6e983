"""Every command on a model of every preset's family: one run each, and the facts that it leaves behind."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from builders.commands import inside
from builders.families import DISTINCT, FAMILIES, Traits, write_family
from builders.judges import BY_PROMPT
from builders.runs import Splits, lines_of, results_of, small_run
from safety_neurons.calibration import clouds
from safety_neurons.calibration.guard import Guard
from safety_neurons.experiments import guard_test
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.load import load
from safety_neurons.models.presets import PRESETS
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.runs import opened
from safety_neurons.runs.pipeline import run
from safety_neurons.tuning.delta import NeuronDelta

SPLITS = Splits(6, 2, 2)
QUESTION = "How do I kill process 7?"
SECTIONS: dict[str, Any] = {
    "find": {"percent": 20.0},
    "explain": {"random_sets": 10, "lens_prompts": 4},
    "tune": {
        **{"refusals": 4, "contrast": 2, "benign": 4, "borderline": 2},
        **{"answer_tokens": 4, "epochs": 1, "batch_size": 4, "learning_rate": 0.01, "select": False},
    },
    "evaluate": {"answer_tokens": 4, "attacks": ["direct", "prefill"], "judge": BY_PROMPT.name, "prompts": 2},
    # There are too few prompts for a rate of 1%. The first layer decides, so that the second is calibrated.
    "guard": {"false_positive_rate": 0.2, "percent": 20.0, "layer": 0, "alpha": 2.0},
}


class Done(NamedTuple):
    """The files that the commands left for one family's model."""

    folder: Path
    traits: Traits
    template: str | None

    @property
    def results(self) -> dict[str, Any]:
        return results_of(self.folder / "run")

    def loaded(self, name: str, dtype: str = "float32") -> ChatModel:
        """The base model ("base") or the merged one, whose folder has the template."""
        template = self.template if name == "base" else None
        return load(self.folder / name, device="cpu", dtype=dtype, chat_template=template)


@pytest.fixture(scope="module", params=DISTINCT)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Done:
    traits, template = FAMILIES[request.param], PRESETS[request.param].chat_template
    folder = tmp_path_factory.mktemp(request.param)
    given: dict[str, Any] = {"model": str(write_family(traits, folder / "base"))}
    if template is not None:
        (folder / "template.jinja").write_text(template, encoding="utf-8")
        given["chat_template"] = str(folder / "template.jinja")
    path = folder / "run"
    run(path, small_run(folder, SPLITS, **given, **SECTIONS))
    with pytest.MonkeyPatch.context() as patch:
        # Thousands would take most of the time.
        patch.setattr(guard_test, "RESAMPLES", 20)
        patch.setattr(clouds, "RESAMPLES", 20)
        # The run has written the report, and the last command writes what came after it.
        patch.setattr(opened, "write_report", lambda *_: None)
        for command in (
            ["guard", str(path)],
            ["experiment", "dose-response", str(path), "--alphas=-2"],
            ["tokens", str(path), QUESTION, "--json", str(folder / "tokens.json")],
            ["merge", str(path), str(folder / "merged")],
            ["report", str(path), "--format", "md"],
        ):
            assert inside(patch, *command) == 0, command
    return Done(folder, traits, template)


def logits(model: ChatModel) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.model(**model.encode([model.render(QUESTION), model.render("Hello")])).logits
    return found


def test_all_stages_are_done_on_all_layers(done: Done) -> None:
    results = done.results
    assert [*results["run"]["stages"]] == ["find", "explain", "calibrate", "tune", "evaluate", "report"]
    assert results["run"]["coverage"]["layers"] == results["run"]["coverage"]["layers_total"] == 2
    assert {layer["layer"] for layer in results["neurons"]["per_layer"]} == {0, 1}
    assert results["neurons"]["total"] == len(NeuronSet.load(done.folder / "run" / "neurons.safetensors"))


def test_every_answer_is_there_and_is_text(done: Done) -> None:
    answers = lines_of(done.folder / "run" / "responses.jsonl")
    assert answers
    assert not [answer for answer in answers for token in done.traits.special if token in answer["text"]]
    rows = [row for row in done.results["rows"] if row["stage"] == "calibrate"]
    assert {(row["subject"], row["prompts"]) for row in rows} > {("base", "harmful"), ("found", "benign")}
    assert {row["n"] + row["unscored"] for row in rows} == {2}


def test_the_report_has_the_model_and_every_part(done: Done) -> None:
    page, tables = ((done.folder / "run" / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    assert str(done.folder / "base") in page
    assert {"words", "clouds", "training", "evaluation", "guard", "dose_response"} <= done.results.keys()
    assert "guard (found neurons to layer 0)" in tables


def test_the_doses_move_the_model(done: Done) -> None:
    rows = done.results["dose_response"]["rows"]
    assert {row["prompts"] for row in rows} == {"harmful", "benign"}
    assert all(row["kl_divergence"]["value"] > 0 for row in rows if row["subject"] == "found" and row["alpha"])


def test_the_guard_decides_by_the_rendered_prompt(done: Done) -> None:
    fitted = Guard.load(done.folder / "run" / "guard.safetensors")
    model = done.loaded("base")
    scores = fitted.scores(model, [QUESTION, "Hello"])
    alone = torch.cat([fitted.scores(model, [prompt]) for prompt in (QUESTION, "Hello")])
    torch.testing.assert_close(scores, alone, rtol=1e-3, atol=1e-3)
    assert done.results["guard"]["layer"] == 0


def test_the_token_view_shows_every_token_of_the_rendered_prompt(done: Done) -> None:
    trace = json.loads((done.folder / "tokens.json").read_text(encoding="utf-8"))
    model = done.loaded("base")
    assert trace["prompt"] == model.render(QUESTION)
    assert len(trace["tokens"]) == model.encode([trace["prompt"]])["input_ids"].shape[1]


def test_the_merged_folder_is_the_tuned_model(done: Done) -> None:
    base, merged = done.loaded("base", done.traits.dtype), done.loaded("merged", done.traits.dtype)
    assert merged.model.dtype == base.model.dtype == getattr(torch, done.traits.dtype)
    before = logits(base)
    with NeuronDelta.load(done.folder / "run" / "delta.safetensors").apply(base):
        assert torch.equal(logits(merged), logits(base))
        assert not torch.equal(logits(base), before)


def test_the_merged_folder_has_the_traits_of_its_base(done: Done) -> None:
    base, merged = done.loaded("base"), done.loaded("merged")
    assert merged.render(QUESTION) == base.render(QUESTION)
    assert type(merged.tokenizer) is type(base.tokenizer)
    assert merged.tokenizer.special_tokens_map == base.tokenizer.special_tokens_map
    settings = [
        json.loads((done.folder / name / "generation_config.json").read_text(encoding="utf-8"))
        for name in ("base", "merged")
    ]
    assert settings[1].pop("transformers_version")
    assert settings[0] == settings[1]
    outputs = merged.model.get_output_embeddings().weight
    assert (outputs.data_ptr() == merged.model.get_input_embeddings().weight.data_ptr()) == done.traits.tied
