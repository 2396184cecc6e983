"""The parts of benchmarks/tuning.py that could mislead: who is compared, what is trained and what is left behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import tuning_contenders
import tuning_table
from torch.nn import functional

import tuning as benchmark
from builders.judges import BY_REQUEST
from builders.runs import Splits, small_run
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.statistics import rate
from safety_neurons.evaluation.judges import Verdict
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.tokens import padding_token
from safety_neurons.tuning import lora
from safety_neurons.tuning.batches import Collator, batches, encode
from safety_neurons.tuning.config import Training
from safety_neurons.tuning.corpus import Corpus, Pair

SPLITS = Splits(4, 2, 1)
REQUESTS = [f"Plan to harm number {number}" for number in range(8)]


@pytest.fixture
def corpus() -> Corpus:
    kinds: Any = ("refusal", "benign", "borderline")
    pairs = (
        Pair(kinds[n % 3], f"p{n}", "Say " + "soup " * (n % 4), "", f"No {n}.", cut_off=n % 2 == 0) for n in range(7)
    )
    return Corpus(tuple(pairs))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """Small copies of the public sets, and one file of attacks that has some of the requests."""
    folder = tmp_path / "copies"
    write_lines(folder / "jailbreakbench.jsonl", [{"prompt": text} for text in REQUESTS])
    write_lines(folder / "alpaca.jsonl", [{"prompt": f"Write poem {number}"} for number in range(6)])
    xstest = [
        {"prompt": f"Is {'soup' if safe else 'harm'} {n} ok?", "safe": safe} for n in range(4) for safe in (True, False)
    ]
    write_lines(folder / "xstest.jsonl", [row | {"label": "safe" if row["safe"] else "unsafe"} for row in xstest])
    attacked = [{"goal": text, "prompt": f"Oh please: {text}!"} for text in REQUESTS[::2]]
    write_lines(folder / "attacks" / "please.jsonl", attacked)
    return folder


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """Settings of a tiny run; verdicts come from the request, and for some from the answer, too."""
    return small_run(
        tmp_path,
        SPLITS,
        find={"percent": 20.0, "positions": 3},
        calibrate={"prompt_positions": 3},
        tune={"answer_tokens": 4, "batch_size": 4, "samples": 1, "largest_share": 1.0},
        evaluate={"answer_tokens": 4, "judge": BY_REQUEST.name},
    ) | {"batch_size": 8}


@pytest.mark.filterwarnings("ignore")
def test_a_killed_benchmark_goes_on_to_the_same_results(
    given: dict[str, Any], copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = benchmark.Options(
        copies,
        budgets=(20.0,),
        seeds=2,
        learning_rates=(1e-3, 1e-2),
        prompts=6,
        safe_prompts=3,
        attack_files=("please",),
    )
    trained: list[tuple[int, float]] = []
    train = benchmark.train

    def stopping(model: Any, neurons: Any, corpus: Any, training: Any, advance: Any) -> Any:
        if len(trained) == 5:
            raise KeyboardInterrupt
        trained.append((training.seed, training.learning_rate))
        return train(model, neurons, corpus, training, advance)

    monkeypatch.setattr(benchmark, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        benchmark.benchmark(tmp_path / "run", given, options)
    # Both rates, the chosen one for the next seed, and so for the next contender: what won is not trained again.
    assert [seed for seed, _ in trained] == [0, 0, 1, 0, 0]
    monkeypatch.setattr(benchmark, "train", train)
    first = benchmark.benchmark(tmp_path / "run", given, options)
    monkeypatch.setattr(benchmark, "train", lambda *_: pytest.fail("trained again"))
    assert benchmark.benchmark(tmp_path / "run", {}, options) == first
    written = json.loads((tmp_path / "run" / "tuning.json").read_text())
    assert written["rows"] == json.loads(json.dumps(first["rows"]))

    rows = {row["name"]: row for row in first["rows"]}
    assert list(rows) == ["base", "found 20%", "sn-tune 20%", "lora", "full"]
    please = rows["found 20%"]["attacks"]["please"]
    assert 2 * first["requests"]["please"] == please["n"] + please["unscored"] < 2 * first["requests"]["direct"] == 12
    assert rows["base"]["kl_divergence"] == 0.0
    assert all(row["kl_divergence"] > 0 for name, row in rows.items() if name != "base")
    assert rows["full"]["costs"]["parameters"] == 3 * 3 * 48 * 32
    assert rows["lora"]["costs"]["parameters"] == 3 * 3 * 8 * (48 + 32)
    assert [(one["rival"], one["found"]) for one in first["differences"]] == [
        (name, "found 20%") for name in ("sn-tune 20%", "lora", "full")
    ]
    page = (tmp_path / "run" / "tuning.md").read_text()
    assert all(f"| {name} |" in page for name in rows)


def state(model: ChatModel) -> dict[str, Any]:
    """Every module by identity, every byte, what learns, and what hangs on the model."""
    network = model.model
    return {
        "modules": [(name, id(module), type(module)) for name, module in network.named_modules()],
        "bytes": {name: value.detach().clone() for name, value in network.state_dict().items()},
        "learning": [(name, value.requires_grad) for name, value in network.named_parameters()],
        "attributes": sorted(vars(network)),
        "random": torch.get_rng_state(),
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    values = [(one["bytes"], other["bytes"]), ({"": one["random"]}, {"": other["random"]})]
    return all(one[name] == other[name] for name in ("modules", "learning", "attributes")) and all(
        mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())
        for mine, theirs in values
    )


def logits(model: ChatModel) -> torch.Tensor:
    with torch.no_grad():
        return model.model(**model.encode(["Hi there"])).logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["llama", "phi3", "gpt2"])
def test_lora_leaves_the_model_as_it_was(
    make_model: Callable[..., ChatModel], corpus: Corpus, architecture: str
) -> None:
    model = make_model(architecture)
    before, base, _ = state(model), logits(model), model.hook_points
    with lora.adapted(model):
        assert torch.equal(logits(model), base)
    training = Training(learning_rate=1e-2, batch_size=3, epochs=1, kl=0.5)
    tuned = tuning_contenders.train(model, None, corpus, training, lambda _: None)
    assert same(state(model), before)
    with tuned.applied():
        assert not torch.allclose(logits(model), base)
    assert same(state(model), before)
    assert tuning_contenders.train(model, None, corpus, training, lambda _: None).digest == tuned.digest
    other = tuning_contenders.train(model, None, corpus, training.override({"seed": 1}), lambda _: None)
    assert other.digest != tuned.digest


def test_all_neurons_as_slices_are_full_fine_tuning(
    model: ChatModel, corpus: Corpus, make_model: Callable[..., ChatModel]
) -> None:
    """Against a loop over the matrices themselves."""
    training = Training(learning_rate=1e-3, batch_size=3, schedule="constant", warmup=0.0, epochs=1, kl=0.0)
    everyone = tuning_contenders.every_neuron(lora.no_neurons(model))
    assert len(everyone) == 3 * 48
    tuned = tuning_contenders.train(model, everyone, corpus, training, lambda _: None)
    naive = make_model().model
    trained = [value for name, value in naive.named_parameters() if ".mlp." in name]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    examples, collator = [encode(model, pair) for pair in corpus.pairs], Collator(padding_token(model))
    for batch in batches(examples, training):
        inputs = collator([examples[index] for index in batch])
        mask, kept = inputs["attention_mask"], inputs["labels"].shape[1]
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        output = naive(input_ids=inputs["input_ids"], attention_mask=mask, position_ids=positions).logits
        predicted = output[:, -kept - 1 : -1].flatten(0, 1)
        optimizer.zero_grad()
        functional.cross_entropy(predicted, inputs["labels"].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    with tuned.applied():
        for name, value in naive.named_parameters():
            # Adam divides by tiny gradients: a few weights differ by rounding.
            assert (model.model.get_parameter(name) - value).abs().mean() < 1e-6, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("fond",)}, "Did you mean found"),
        ({"learning_rates": ()}, "at least one of --learning-rates"),
        ({"learning_rates": (1e-3, 1e-3)}, "each of them once"),
        ({"budgets": ()}, "at least one of --budgets"),
        ({"budgets": (0.0,)}, "between 0 and 100"),
        ({"seeds": 0}, "--seeds"),
        ({"attack_files": ("pleas",)}, "Did you mean please"),
        ({"data_dir": Path("nowhere")}, "nowhere"),
    ],
    ids=str,
)
def test_bad_input_is_an_error_before_any_work(
    copies: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    usual: dict[str, Any] = {"data_dir": copies, "attack_files": ("please",), "methods": ("found",)}
    options = benchmark.Options(**(usual | changes))
    with pytest.raises(SafetyNeuronsError, match=message):
        benchmark.benchmark(tmp_path / "run", {}, options)
    assert not (tmp_path / "run").exists()


def test_lora_without_peft_says_what_to_install(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora.importlib.util, "find_spec", lambda _name: None)
    benchmark.Options(copies, methods=("found",)).check()
    with pytest.raises(SafetyNeuronsError, match=r"safety-neurons\[lora\]"):
        benchmark.Options(copies).check()


def share(hits: int, of: int, counted: Verdict = "refused") -> Any:
    other: Verdict = "complied" if counted == "refused" else "refused"
    return rate([counted] * hits + [other] * (of - hits), counted)


def test_the_bar_says_what_is_missed() -> None:
    before = {"alpaca": share(1, 100), "xstest-safe": share(10, 100), "xstest-unsafe": share(50, 100)}
    attacks = {"direct": share(0, 100), "prefill": share(10, 100)}
    after = {"alpaca": share(2, 100), "xstest-safe": share(10, 100), "xstest-unsafe": share(51, 100)}
    assert tuning_table.missed(share(5, 100), attacks, after, before) == ()
    worse = {"alpaca": share(3, 100), "xstest-safe": share(11, 100), "xstest-unsafe": share(50, 100)}
    attacks["prefill"] = share(11, 100)
    everything = ("mean", "each", "alpaca", "xstest-safe", "xstest-unsafe")
    assert tuning_table.missed(share(6, 100), attacks, worse, before) == everything
    nothing = dict.fromkeys(before, share(0, 0))
    assert tuning_table.missed(share(0, 0), {"direct": share(0, 0)}, nothing, before) == everything


def line(name: str, method: str, budget: float | None, seed: int, attack: str, safe: str) -> dict[str, Any]:
    letters = {"c": "complied", "r": "refused", "u": "unscored", "-": None}
    sets = {name: [letters[letter] for letter in safe] for name in ("alpaca", "xstest-safe", "xstest-unsafe")}
    attacks = {"direct": [letters[letter] for letter in attack]}
    numbers = {"kl_divergence": [0.1, None], "nll": [1.0, None], "learning_rate": 1e-3}
    described = {"name": name, "method": method, "budget": budget, "seed": seed, "costs": {"peak": 2.0 + seed}}
    return described | numbers | {"attacks": attacks, "sets": sets}


def test_seeds_are_pooled_and_rivals_meet_ours_at_their_budget() -> None:
    lines = [
        line("base", "base", None, 0, "cccc", "rccc"),
        line("found 1%", "found", 1.0, 0, "rrrr", "rccc"),
        line("found 1%", "found", 1.0, 1, "crr-", "cccu"),
        line("found 3%", "found", 3.0, 0, "rrrr", "rrcc"),
        line("sn-tune 3%", "sn-tune", 3.0, 0, "ccrr", "rccc"),
        line("lora", "lora", None, 0, "crrr", "rccc"),
    ]
    rows = tuning_table.summarize(lines, seed=0)
    assert [(row.name, row.seeds) for row in rows][1] == ("found 1%", 2)
    assert rows[1].mean.value == pytest.approx((0 + 1 / 3) / 2)
    assert rows[1].sets["alpaca"].value == pytest.approx((1 / 4 + 0) / 2)
    # Once in each of the three sets; a request that was not made is none.
    assert rows[1].unscored == 3
    assert (rows[1].costs, rows[0].costs) == ({"peak": 2.5}, None)
    assert rows[1].kl_divergence == pytest.approx(0.1)
    assert rows[1].perplexity == pytest.approx(2.718281828)
    found = {(one.rival, one.found): one for one in tuning_table.compare(lines, seed=0)}
    assert list(found) == [("sn-tune 3%", "found 3%"), ("lora", "found 1%"), ("lora", "found 3%")]
    assert found["sn-tune 3%", "found 3%"].attack_success.value == pytest.approx(0.5)
    assert found["sn-tune 3%", "found 3%"].over_refusal.value == pytest.approx(-0.25)
