"""The vocabulary test, against its statistic counted pair by pair, planted words, and sets that are random."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest, mannwhitneyu
from torch import Tensor

from builders.quick import explain, find
from safety_neurons.explanation.lexicon import LEXICONS, separation
from safety_neurons.explanation.readout import Readout, ResidualMeans, mean_residuals
from safety_neurons.explanation.vocabulary import permutation_p, vocabulary_test
from safety_neurons.explanation.writes import SIDES, WEIGHTINGS, layer_writes
from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.neuron_set import Directions, NeuronSet

NORMS = {"llama": "model.norm", "gpt2": "transformer.ln_f", "gemma2": "model.norm"}


def logits(name: str, model: ChatModel, write: Tensor) -> Tensor:
    """The final norm and the unembedding, written out, of a write of mean square 1."""
    write = write.double()
    write = write / write.square().mean().sqrt()
    norm = model.model.get_submodule(NORMS[name])
    gain = norm.weight.detach().double()
    if name == "gpt2":
        write = write - write.mean()
        normed = write / (write.square().mean() + 1e-5).sqrt() * gain + norm.bias.detach().double()
    else:
        normed = write / (write.square().mean() + 1e-6).sqrt() * (1 + gain if name == "gemma2" else gain)
    return normed @ model.model.get_output_embeddings().weight.detach().double().T


def tokens_of(model: ChatModel) -> dict[str, list[int]]:
    """The tokens of each lexicon, and the other words."""
    texts = [model.tokenizer.decode([token]).strip().lower() for token in range(len(model.tokenizer))]
    found = {name: [token for token, text in enumerate(texts) if text in words] for name, words in LEXICONS.items()}
    known = {token for tokens in found.values() for token in tokens}
    found["others"] = [
        token for token, text in enumerate(texts) if text.isascii() and text.isalpha() and token not in known
    ]
    return found


def auroc(values: Tensor, tokens: dict[str, list[int]], lexicon: str) -> float:
    """Pair by pair."""
    wins = [
        1.0 if values[mine] > values[other] else 0.5 if values[mine] == values[other] else 0.0
        for mine in tokens[lexicon]
        for other in tokens["others"]
    ]
    return sum(wins) / len(wins)


def naive_weights(neurons: NeuronSet, layer: int, side: str, weighting: str) -> Tensor:
    assert neurons.directions is not None
    harmful, benign = (means[layer][-1].double() for means in (neurons.directions.harmful, neurons.directions.benign))
    own, other = (harmful, benign) if side == "rejection" else (benign, harmful)
    return own - other if weighting == "difference" else own


@pytest.mark.parametrize("name", list(NORMS))
def test_scores_are_those_counted_pair_by_pair(
    name: str, harmful: list[str], benign: list[str], make_worded: Callable[..., ChatModel]
) -> None:
    model = make_worded(name)
    neurons = find(model, harmful, benign, percent=15)
    residuals = mean_residuals(model, harmful, benign)
    test = vocabulary_test(model, neurons, random_sets=30, residuals=residuals)
    tokens = tokens_of(model)
    assert test.reference_tokens == len(tokens["others"])
    assert {(score.weighting, score.side, score.lexicon) for score in test.scores} == {
        (weighting, side, lexicon)
        for weighting in ("difference", "mean")
        for side in ("rejection", "conformity")
        for lexicon in ("refusal", "compliance")
    }
    for score in test.scores:
        found = (neurons.rejection if score.side == "rejection" else neurons.conformity)[score.layer].tolist()
        weights = naive_weights(neurons, score.layer, score.side, score.weighting)
        vectors = model.hook_points[score.layer].write_vectors().double()
        total = torch.zeros(vectors.shape[1], dtype=torch.float64)
        for neuron in found:
            total += weights[neuron] * vectors[neuron]
        assert score.neurons == len(found)
        assert score.together == pytest.approx(auroc(logits(name, model, total), tokens, score.lexicon), abs=0.01)
        single = [
            auroc(logits(name, model, weights[neuron].sign() * vectors[neuron]), tokens, score.lexicon)
            for neuron in found
        ]
        assert score.single == pytest.approx(np.mean(single), abs=0.005)
        assert score.single_max == pytest.approx(max(single), abs=0.01)
        assert sum(value > score.random_single_95 + 0.01 for value in single) <= score.single_above
        assert score.single_above <= sum(value > score.random_single_95 - 0.01 for value in single)
        assert 1 / 31 <= score.p <= score.p_adjusted <= 1
    for lens in test.lens:
        own, other = residuals.harmful[lens.layer], residuals.benign[lens.layer]
        if lens.side == "conformity":
            own, other = other, own
        stream = own - other if lens.weighting == "difference" else own
        assert lens.auroc == pytest.approx(auroc(logits(name, model, stream), tokens, lens.lexicon), abs=0.01)


def test_overall_scores_are_means_over_the_layers(worded: ChatModel, harmful: list[str], benign: list[str]) -> None:
    neurons = find(worded, harmful, benign, percent=15)
    test = vocabulary_test(worded, neurons, random_sets=30, residuals=mean_residuals(worded, harmful, benign))
    for overall in test.overall:
        key = (overall.weighting, overall.side, overall.lexicon)
        scores = [one for one in test.scores if (one.weighting, one.side, one.lexicon) == key]
        lens = [one.auroc for one in test.lens if (one.weighting, one.side, one.lexicon) == key]
        layers = [one.layer for one in scores]
        assert overall.layers == len(layers) == len(set(layers)) > 0
        for field in ("together", "random", "single", "random_single", "together_top", "random_top", "single_top"):
            assert getattr(overall, field) == pytest.approx(np.mean([getattr(one, field) for one in scores])), field
        assert overall.lens == pytest.approx(np.mean([lens[layer] for layer in layers]))
        assert overall.random_low <= overall.random <= overall.random_high
        # Benjamini and Hochberg's rule, written out: the k-th smallest p times L / k, made monotonic from the top.
        p = sorted((one.p, one.p_adjusted) for one in scores)
        least = 1.0
        for rank in range(len(p), 0, -1):
            least = min(least, p[rank - 1][0] * len(p) / rank)
            assert p[rank - 1][1] == pytest.approx(least)


def test_separation_counts_pairs_and_ties() -> None:
    generator = torch.Generator().manual_seed(3)
    lexicon = torch.randint(0, 9, (5, 4), generator=generator).float()
    others = torch.randint(0, 9, (5, 200), generator=generator).float()
    found = separation(lexicon, others.sort(1).values)
    for row in range(5):
        statistic = mannwhitneyu(lexicon[row].numpy(), others[row].numpy()).statistic
        assert found.auroc[row] == pytest.approx(statistic / (4 * 200))
        above = [(others[row] < value).double().mean().item() >= 0.99 for value in lexicon[row]]
        assert found.top[row] == pytest.approx(sum(above) / 4)
        under = [(others[row] > value).double().mean().item() >= 0.99 for value in lexicon[row]]
        assert found.bottom[row] == pytest.approx(sum(under) / 4)
    opposite = separation(-lexicon, (-others).sort(1).values)
    for values, expected in zip(found.negated, opposite, strict=True):
        np.testing.assert_allclose(values, expected, atol=1e-12)
    # A write that says nothing at all is at chance.
    assert separation(torch.zeros(1, 4), torch.zeros(1, 200)).auroc == pytest.approx([0.5])


@pytest.mark.parametrize(
    ("observed", "random", "p"),
    [(3.0, [1.0, 2.0, 4.0], 0.5), (9.0, [1.0, 2.0, 4.0], 0.25), (0.0, [1.0, 2.0, 4.0], 1.0), (4.0, [4.0], 1.0)],
)
def test_permutation_p_counts_the_observed_set_too(observed: float, random: list[float], p: float) -> None:
    assert permutation_p(observed, np.array(random)) == pytest.approx(p)


def planted(model: ChatModel, found: dict[int, list[int]], directions: Tensor) -> NeuronSet:
    """Rejection neurons by layer, with mean activations `directions` on harmful prompts and none on benign ones."""
    empty = torch.zeros(0, dtype=torch.int64)
    hook_points = range(len(model.hook_points))
    neurons = find(model, ["a"], ["b"], percent=5, positions=1)
    return dataclasses.replace(
        neurons,
        rejection=tuple(
            torch.tensor(found[hook_point]) if hook_point in found else empty for hook_point in hook_points
        ),
        conformity=(empty,) * len(model.hook_points),
        directions=Directions(
            tuple(directions[hook_point][None] for hook_point in hook_points), (torch.zeros(1, 48),) * len(hook_points)
        ),
    )


def plant(model: ChatModel, layer: int, neuron: int, token: int) -> None:
    """Let a neuron write just what the unembedding of a token reads."""
    gain = model.model.model.norm.weight
    with torch.no_grad():
        row = model.model.get_output_embeddings().weight[token] / gain
        model.model.model.layers[layer].mlp.down_proj.weight[:, neuron] = row


def clean(model: ChatModel) -> ChatModel:
    """The final norm's gain away from zero, so that it can be undone."""
    with torch.no_grad():
        model.model.model.norm.weight.fill_(1.0).add_(torch.linspace(-0.3, 0.3, 32))
    return model


def test_neurons_that_write_refusals_together_are_found(worded: ChatModel) -> None:
    """Each writes one word, so alone it says little of the lexicon; the sum says all of it."""
    clean(worded)
    tokens = tokens_of(worded)["refusal"]
    for neuron, token in enumerate(tokens):
        plant(worded, 1, 5 * neuron, token)
    generator = torch.Generator().manual_seed(0)
    activations = torch.rand(3, 48, generator=generator) * 0.1 - 0.05
    activations[1, [5 * neuron for neuron in range(len(tokens))]] = 1.0
    neurons = planted(worded, {0: [1, 2, 3], 1: [5 * neuron for neuron in range(len(tokens))], 2: [7, 8]}, activations)
    test = vocabulary_test(worded, neurons, random_sets=400)
    score = next(one for one in test.own("rejection", "difference") if one.layer == 1)
    assert score.together > 0.9
    assert score.together > score.random_high
    assert score.p_adjusted < 0.05
    assert 0.5 < score.single < 0.75 < score.together
    assert test.first_readable("rejection", "difference") == 1
    assert test.first_readable("conformity", "difference") is None
    # In the other direction they say the opposite.
    falling = vocabulary_test(
        worded, dataclasses.replace(neurons, directions=Directions(*reversed_means(neurons))), random_sets=50
    )
    assert next(one for one in falling.own("rejection", "difference") if one.layer == 1).together < 0.1


def reversed_means(neurons: NeuronSet) -> tuple[Any, Any]:
    assert neurons.directions is not None
    return neurons.directions.benign, neurons.directions.harmful


def test_a_neuron_that_writes_one_word_is_read_as_that_word(worded: ChatModel) -> None:
    clean(worded)
    sorry = worded.tokenizer.convert_tokens_to_ids(" sorry")
    plant(worded, 2, 11, sorry)
    activations = torch.full((3, 48), 0.01)
    activations[2, 11] = 3.0
    explanation = explain(worded, planted(worded, {2: [4, 11, 30]}, activations), neurons=2, random_sets=0)
    layer = explanation.layers[0]
    assert layer.words[0] == " sorry"
    assert (layer.neurons[0].hook_point, layer.neurons[0].neuron) == (2, 11)
    assert layer.neurons[0].promoted[0] == " sorry"
    assert layer.neurons[0].weight == pytest.approx(3.0)
    assert explanation.vocabulary is None
    activations[2, 11] = -3.0
    falling = explain(worded, planted(worded, {2: [4, 11, 30]}, activations), neurons=2, random_sets=0).layers[0]
    assert falling.suppressed[0] == falling.neurons[0].suppressed[0] == " sorry"


def test_p_is_uniform_for_random_sets(worded: ChatModel, harmful: list[str], benign: list[str]) -> None:
    base = find(worded, harmful, benign, percent=10)
    found: list[float] = []
    for seed in range(60):
        generator = torch.Generator().manual_seed(1000 + seed)
        drawn = [torch.randperm(48, generator=generator)[:8] for _ in worded.hook_points]
        rejection, conformity = (tuple(one[part].sort().values for one in drawn) for part in (slice(5), slice(5, 8)))
        neurons = dataclasses.replace(base, rejection=rejection, conformity=conformity)
        test = vocabulary_test(worded, neurons, random_sets=39, seed=seed)
        found += [one.p for side in ("rejection", "conformity") for one in test.own(side, "difference")]
    assert len(found) == 360
    # Steps of 1/40 and neurons that share a layer: a coarse look at the whole distribution, and at its lower end.
    assert kstest(np.array(found) - 1 / 80, "uniform").pvalue > 1e-3
    assert np.mean(np.array(found) <= 0.05) < 0.1


def test_seeds_reproduce(worded: ChatModel, harmful: list[str], benign: list[str]) -> None:
    neurons = find(worded, harmful, benign, percent=10)
    first = vocabulary_test(worded, neurons, random_sets=20, seed=4)
    torch.rand(5)
    assert vocabulary_test(worded, neurons, random_sets=20, seed=4) == first
    other = vocabulary_test(worded, neurons, random_sets=20, seed=5)
    assert [one.random for one in other.scores] != [one.random for one in first.scores]
    assert [one.together for one in other.scores] == [one.together for one in first.scores]


def test_vocabulary_without_the_lexicons_is_not_tested(model: ChatModel, harmful: list[str], benign: list[str]) -> None:
    explanation = explain(model, find(model, harmful, benign, percent=10), random_sets=5)
    assert explanation.vocabulary is not None
    assert explanation.vocabulary.scores == explanation.vocabulary.overall == ()
    assert explanation.first_readable("rejection") is None
    assert "AUROC" not in str(explanation)
    assert explanation.to_json()["vocabulary"]["lexicons"][0]["tokens"] == 0


def test_printed_test_names_the_first_readable_layer(worded: ChatModel, harmful: list[str], benign: list[str]) -> None:
    neurons = find(worded, harmful, benign, percent=10)
    residuals = mean_residuals(worded, harmful, benign)
    explanation = explain(worded, neurons, random_sets=20, residuals=residuals)
    vocabulary = explanation.vocabulary
    assert vocabulary is not None
    early = dataclasses.replace(
        vocabulary, scores=tuple(dataclasses.replace(one, p_adjusted=0.9) for one in vocabulary.scores)
    )
    assert "First readable layer: none" in str(dataclasses.replace(explanation, vocabulary=early))
    chosen = vocabulary.own("rejection", "difference")[-1]
    late = dataclasses.replace(
        vocabulary,
        scores=tuple(dataclasses.replace(one, p_adjusted=0.01 if one is chosen else 0.9) for one in vocabulary.scores),
    )
    shown = dataclasses.replace(explanation, vocabulary=late)
    assert shown.first_readable("rejection") == chosen.layer
    assert f"First readable layer: {chosen.layer}." in str(shown)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_residual_means_are_those_of_the_prompts_one_by_one(
    name: str, harmful: list[str], benign: list[str], make_model: Callable[..., ChatModel]
) -> None:
    model = make_model(name)
    prompts = [*harmful[:2], "A much longer request, so that the others are padded on the left, please."]
    found = mean_residuals(model, prompts, benign, batch_size=2)
    assert isinstance(found, ResidualMeans)
    streams = []
    for prompt in prompts:
        inputs = model.tokenizer(model.render(prompt), return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            output = model.model(input_ids=inputs, output_hidden_states=True, use_cache=False)
        # After the last layer transformers keeps only the normed stream.
        streams.append(torch.stack([state[0, -1] for state in output.hidden_states[1:-1]]))
    assert found.harmful.shape == found.benign.shape == (3, 32)
    torch.testing.assert_close(found.harmful[:-1], torch.stack(streams).mean(0), rtol=1e-4, atol=1e-4)
    alone = mean_residuals(model, prompts[:1], benign[:1])
    inputs = model.tokenizer(model.render(prompts[0]), return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        last = model.model(input_ids=inputs, output_hidden_states=True, use_cache=False).hidden_states[-1][0, -1]
        normed = model.model.get_submodule(NORMS[name])(alone.harmful[-1:])[0]
    torch.testing.assert_close(normed, last, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "phi3", "qwen2_moe", "gpt_oss"])
def test_random_sets_are_read_like_each_alone(
    name: str, dtype: torch.dtype, harmful: list[str], benign: list[str], make_worded: Callable[..., ChatModel]
) -> None:
    """Set by set through the model's own norm and unembedding."""
    model = make_worded(name)
    model.model.to(dtype)
    neurons = find(model, harmful, benign, percent=10)
    test = vocabulary_test(model, neurons, random_sets=25, seed=3)
    tokens, readout = tokens_of(model), Readout.of(model)
    generator = torch.Generator().manual_seed(3)
    torch.randperm(len(tokens["others"]), generator=generator)
    scores = {(score.layer, *score.key): score for score in test.scores}
    checked = 0
    for layer in layer_writes(model, neurons):
        torch.randperm(len(layer.vectors), generator=generator)
        for side in SIDES:
            count = len(layer.found(side))
            drawn = [torch.randperm(len(layer.vectors), generator=generator)[:count] for _ in range(25) if count]
            for weighting in WEIGHTINGS:
                writes = [layer.write(indices, side, weighting) for indices in drawn]
                logits = [readout.unembedding(readout.normed(write[None]))[0].double() for write in writes]
                for lexicon in ("refusal", "compliance") if count else ():
                    random = [auroc(values, tokens, lexicon) for values in logits]
                    score = scores[layer.layer, weighting, side, lexicon]
                    assert score.random == pytest.approx(np.mean(random), abs=0.005)
                    assert score.random_low == pytest.approx(np.quantile(random, 0.025), abs=0.02)
                    assert score.random_high == pytest.approx(np.quantile(random, 0.975), abs=0.02)
                    above, below = (np.mean(np.array(random) >= score.together + shift) for shift in (-0.01, 0.01))
                    assert below - 0.05 <= score.p <= above + 0.05
                    checked += 1
    assert checked == len(scores) > 4


def test_random_sets_are_weighted_like_the_set(worded: ChatModel, harmful: list[str], benign: list[str]) -> None:
    """A set that is its whole layer is every random set of its size, too."""
    neurons = find(worded, harmful, benign, percent=10)
    empty = torch.zeros(0, dtype=torch.int64)
    whole = dataclasses.replace(neurons, rejection=(torch.arange(48), empty, empty), conformity=(empty,) * 3)
    test = vocabulary_test(worded, whole, random_sets=10)
    assert {(one.layer, one.neurons, one.p) for one in test.scores} == {(0, 48, 1.0)}
    for one in test.scores:
        assert one.random == pytest.approx(one.together)
        assert one.random_single == pytest.approx(one.single, abs=0.2)
