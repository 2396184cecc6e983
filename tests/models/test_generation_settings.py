"""Greedy is greedy: whatever a model's generation settings say, only what is asked for counts."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from builders.models import BENIGN, HARMFUL
from builders.quick import find, tune
from builders.runs import save_model
from safety_neurons.evaluation.defenses.safedecoding import Steering, complete_safely
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import Sampling, complete, only_settings
from safety_neurons.models.load import load
from safety_neurons.tuning.corpus import Corpus, Pair
from safety_neurons.tuning.merge import merge

TEXTS = ["Hi", "Tell me about the sea, please.", "Why?"]
PLAIN: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
    "several answers": {"num_beams": 2, "num_return_sequences": 2},
    "dictionaries": {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True},
    "stop strings": {"stop_strings": ["a", "zzzz"]},
    "sampling": {"do_sample": True, "temperature": 5.0, "top_k": 3, "top_p": 0.5, "typical_p": 0.5, "min_p": 0.5},
    "sampling of a greedy model": {"temperature": 0.9, "top_p": 0.6},
    "penalties": {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "encoder_repetition_penalty": 2.0},
    "lengths": {"max_length": 20, "min_length": 60},
    "new lengths": {"max_new_tokens": 1, "min_new_tokens": 40, "max_time": 1e-9},
    "suppressed": {"suppress_tokens": list(range(5, 150)), "begin_suppress_tokens": list(range(150, 250))},
    "forced": {"forced_bos_token_id": 9, "forced_eos_token_id": 1, "exponential_decay_length_penalty": [1, 5.0]},
    "bad words": {"bad_words_ids": [[token] for token in range(5, 200)], "sequence_bias": [[[210], -50.0]]},
    "guidance": {"guidance_scale": 3.0, "renormalize_logits": True, "remove_invalid_values": True},
    "lookup": {"prompt_lookup_num_tokens": 2},
    "watermark": {"watermarking_config": {"greenlist_ratio": 0.1, "bias": 20.0}},
    "static cache": {"cache_implementation": "static"},
    "quantized cache": {"cache_implementation": "quantized"},
    "no cache": {"use_cache": False},
    "other padding": {"pad_token_id": 7},
    "unknown": {"trust": 1, "transformers_version": "9.9"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from builders.models import tiny_model

    path = tmp_path_factory.mktemp("settings") / "model"
    save_model(tiny_model(), path)
    return path


def loaded(folder: Path, settings: dict[str, Any]) -> ChatModel:
    (folder / "generation_config.json").write_text(json.dumps(PLAIN | settings), encoding="utf-8")
    return load(folder, device="cpu", dtype="float32")


def answers(model: ChatModel) -> list[Any]:
    texts = [model.render(text) for text in TEXTS]
    return [
        complete(model, texts, 8),
        complete(model, texts, 8, use_cache=False),
        complete(model, texts, 8, sampling=Sampling(1.3, 5)),
        complete_safely(model, contextlib.nullcontext, texts, 8, Steering(3.0, 3, 1)),
    ]


@pytest.mark.parametrize("name", SETTINGS)
def test_answers_are_those_of_a_model_without_settings(name: str, folder: Path) -> None:
    expected = answers(loaded(folder, {}))
    found = answers(loaded(folder, SETTINGS[name]))
    assert found == expected
    assert found[0] != found[2]


def test_settings_in_memory_and_in_the_models_config(model: ChatModel) -> None:
    expected = answers(model)
    own = model.model.generation_config
    own.update(num_beams=2, num_return_sequences=2)
    model.model.config.temperature = 0.5
    assert answers(model) == expected
    assert model.model.generation_config is own
    with only_settings(model) as config:
        assert model.model.generation_config is config
    assert own.num_beams == 2


def test_token_type_ids_never_reach_the_model(model: ChatModel) -> None:
    expected = answers(model)
    model.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert "token_type_ids" in model.tokenizer("Hi")
    assert set(model.encode(["Hi"])) == {"input_ids", "attention_mask"}
    assert answers(model) == expected


@pytest.mark.parametrize("name", ["beams", "sampling of a greedy model", "stop strings", "watermark"])
def test_a_merged_model_has_the_settings_of_its_base(name: str, folder: Path, tmp_path: Path) -> None:
    model = loaded(folder, SETTINGS[name])
    delta = tune(
        model, find(model, HARMFUL, BENIGN, percent=20.0), Corpus((Pair("refusal", "id", "Hi", "", "No."),)), epochs=1
    )
    merge(delta, model, tmp_path / "merged", "card")
    kept = GenerationConfig.from_pretrained(tmp_path / "merged").to_diff_dict()
    assert kept == GenerationConfig.from_pretrained(folder).to_diff_dict()
