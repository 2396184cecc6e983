"""The tables of a run's stages: neurons, words, calibration, training, before and after; and the small print."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from safety_neurons.core.tables import Mark, Table, TableCell, TableRow, numbers, row, words
from safety_neurons.models.presets import Preset
from safety_neurons.report import seeds_tables, summary, text
from safety_neurons.report.results import CloudLayer, LayerScore, LayerSideWords, MeanScore, RunResults, SingleNeuron
from safety_neurons.report.scale_curve import ScaleCurve, ScalePoint, ValidationPoint

# A page must stay readable, and small, whatever it is given.
MOST_ROWS = 400
MOST_LAYERS = 300
MOST_SETS = 10
_MOST_NEURONS = 1000
_MOST_WORDS, _MOST_SUPPRESSED, _MOST_READ_WORDS = 10, 5, 8
_SIDES = ("rejection", "conformity")


def neurons(results: RunResults) -> Table:
    """The found neurons, layer by layer."""
    layers = results.neurons.per_layer[:MOST_LAYERS] if results.neurons else []
    return Table.of(
        "Safety neurons in each layer",
        (*words("layer"), *numbers("rejection", "conformity", "all neurons")),
        [[one.layer, *map(text.count, (one.rejection, one.conformity, one.width))] for one in layers],
    )


def promoted(results: RunResults) -> Table:
    """What each layer's neurons promote and suppress, deepest layer first: near the output the words read best."""
    shares = {one.layer: one.projection for one in results.write_share if one.weighting == weighting(results)}
    sides: dict[int, dict[str, LayerSideWords]] = {}
    for entry in results.words:
        sides.setdefault(entry.layer, {})[entry.side] = entry

    def cell(entry: LayerSideWords | None) -> TableCell:
        if entry is None:
            return TableCell(text.NONE)
        away = ", ".join(map(text.token, entry.suppressed[:_MOST_SUPPRESSED]))
        return text.tokens(entry.words[:_MOST_WORDS], f"away from: {away}" if away else "")

    rows = [
        [
            TableCell(str(layer), text.percent(shares[layer]) if layer in shares else ""),
            *(cell(sides[layer].get(side)) for side in _SIDES),
        ]
        for layer in sorted(sides, reverse=True)[:MOST_LAYERS]
    ]
    return Table.of("What the neurons of each layer promote", words("layer", "rejection side", "conformity side"), rows)


def read_neurons(results: RunResults) -> list[SingleNeuron]:
    """The neurons that were read one by one, deepest layer first."""
    read = [one for entry in results.words for one in entry.neurons]
    return sorted(read, key=lambda one: -one.layer)[:_MOST_NEURONS]


def single_neurons(results: RunResults) -> Table:
    """The words of single neurons."""
    rows = [
        [
            one.layer,
            one.neuron,
            one.side,
            *(text.tokens(found[:_MOST_READ_WORDS]) for found in (one.promoted, one.suppressed)),
        ]
        for one in read_neurons(results)
    ]
    columns = (*numbers("layer", "neuron"), *words("side", "toward", "away from"))
    return Table.of("Words of single neurons", columns, rows)


def weighting(results: RunResults) -> str:
    """How write vectors were weighted where the settings had a choice."""
    return str((results.run.settings.get("explain") or {}).get("weighting", "difference"))


def own_scores(results: RunResults) -> list[tuple[MeanScore, list[LayerScore], dict[int, float]]]:
    """For each side the test with its own lexicon: its mean, its layers, and the residual stream by layer."""
    test, found = results.vocabulary, []
    for side, lexicon in (("rejection", "refusal"), ("conformity", "compliance")):
        key = (weighting(results), side, lexicon)
        own = [one for one in test.overall if (one.weighting, one.side, one.lexicon) == key] if test else []
        if test and own:
            scores = [one for one in test.scores if (one.weighting, one.side, one.lexicon) == key]
            lens = [one for one in test.lens if (one.weighting, one.side, one.lexicon) == key]
            found.append((own[0], scores[:MOST_LAYERS], {one.layer: one.auroc for one in lens[:MOST_LAYERS]}))
    return found


def vocabulary(results: RunResults) -> Table:
    """Whether the neurons say their side's words together, over all layers."""
    first = {
        one.side: one.layer
        for one in (results.vocabulary.first_readable if results.vocabulary else [])
        if one.weighting == weighting(results) and one.layer is not None
    }
    rows = []
    for one, _, _ in own_scores(results):
        random = f"({text.score(one.random_low)}{text.NONE}{text.score(one.random_high)})"
        start = f", first {first[one.side]}" if one.side in first else ""
        rows.append(
            [
                f"{one.side}: {one.lexicon} words",
                text.score(one.together),
                TableCell(text.score(one.random), random),
                text.p_value(one.p),
                *map(text.score, (one.single, one.random_single, one.lens)),
                f"{one.significant} of {one.layers}{start}",
            ]
        )
    columns = ("together", "random sets", "p", "one by one", "random ones", "residual stream", "layers that differ")
    title = "What the neurons write: AUROC of the words, 0.5 is chance"
    return Table.of(title, (*words("neurons"), *numbers(*columns)), rows)


def vocabulary_layers(results: RunResults) -> Table:
    """The vocabulary test, layer by layer."""
    rows = [
        [
            mean.side,
            one.layer,
            text.count(one.neurons),
            text.score(one.together),
            f"{text.score(one.random_low)}{text.NONE}{text.score(one.random_high)}",
            text.p_value(one.p_adjusted),
            text.score(one.single),
            text.count(one.single_above),
            text.score(lens.get(one.layer)),
        ]
        for mean, scores, lens in own_scores(results)
        for one in scores
    ]
    columns = ("layer", "neurons", "together", "random sets", "p, adjusted", "one by one", "above random", "residual")
    return Table.of("The vocabulary test, layer by layer", (*words("side"), *numbers(*columns)), rows)


def calibration(results: RunResults) -> Table:
    """Refusals while neurons are calibrated."""
    rows = [
        [one.prompts, one.condition, one.subject, text.rate(one.rate), text.count(one.n), one.judge]
        for one in results.rows[:MOST_ROWS]
    ]
    columns = (*words("prompts", "calibration", "neurons"), *numbers("refused", "n"), *words("judge"))
    return Table.of("Refused while neurons are calibrated", columns, rows)


def layer_name(one: CloudLayer) -> str:
    return "all layers" if one.layer is None else f"layer {one.layer}"


def clouds(results: RunResults) -> Table:
    """How well each layer's neurons tell harmful from benign prompts, and what calibration changes."""
    rows = []
    for one in results.clouds.layers[:MOST_LAYERS] if results.clouds else []:
        half = [one.harmful_half.get(name) for name in ("harmful", "harmful_calibrated", "benign", "benign_calibrated")]
        cells = [
            layer_name(one),
            text.count(one.neurons),
            *(text.mean(found, text.auroc) for found in (one.auroc, one.auroc_random)),
            *map(text.percent, one.explained or (None, None)),
            *map(text.percent, half),
        ]
        rows.append(row(cells, "mean" if one.layer is None else ""))
    shares = ("first axis", "second axis", "harmful", "harmful calibrated", "benign", "benign calibrated")
    columns = (*words("neurons of"), *numbers("neurons", "found", "random", *shares))
    caption = "Then the variance on each axis, and the share of each kind of prompts on the harmful side."
    return Table.of("Harmful and benign prompts told apart by activations: AUROC", columns, rows, caption)


def training(results: RunResults) -> Table:
    """What the model was trained on."""
    corpus = results.training.corpus if results.training else {}
    pairs = sum(corpus.values())
    rows = [
        [kind.replace("_", " "), text.count(number), text.percent(number / pairs if pairs else None)]
        for kind, number in islice(corpus.items(), MOST_ROWS)
    ]
    return Table.of(
        "Training pairs of a prompt and the answer to learn", (*words("pairs"), *numbers("n", "share")), rows
    )


def scale_curves(results: RunResults) -> list[ScaleCurve]:
    """The selection of pass and scale for the tuned neurons, and for random ones where these were tuned."""
    found = results.training.scale_curve if results.training else None
    random = seeds_tables.own(results, "random")
    curves = (found, *(one.scale_curve for one in islice(random.trainings if random else (), 1)))
    return [curve for curve in curves if curve is not None]


def selection(curve: ScaleCurve) -> Table:
    """Every measured candidate: a pass over the corpus and a scale of the delta."""
    sets = list(curve.base.shares)[:MOST_SETS]

    def line(names: tuple[str, str], point: ValidationPoint, mark: Mark) -> TableRow:
        refused = [text.rate(point.shares.get(name)) for name in sets]
        return row([*names, text.rate(point.attack_success), *refused], mark)

    def candidate(number: int, point: ScalePoint) -> TableRow:
        is_selected = number == curve.selected
        return line(
            (str(point.epoch), f"{point.scale:g}{', selected' * is_selected}"), point, "chosen" if is_selected else ""
        )

    lines = [line(("base", "0"), curve.base, "section")]
    lines += [candidate(number, point) for number, point in enumerate(curve.points[:MOST_ROWS])]
    sizes = [f"{name} {text.count(curve.base.shares[name].n)}" for name in sets]
    attacks = curve.base.attack_success
    caption = (
        f"Scale: what the trained change is multiplied by. n: harmful {text.count(attacks.n if attacks else None)}, "
        f"{', '.join(sizes)}. Broken answers count as refusals. {text.NONE}: not asked, as a safe set is refused far "
        "too often."
    )
    columns = (*words("pass", "scale"), *numbers("attack success", *(f"{name} refused" for name in sets)))
    return Table.of(f"Pass and scale on validation prompts, {curve.subject} neurons", columns, lines, caption)


def before_after(results: RunResults) -> Table:
    """Attack success and refusals of the base and of the tuned model, by every judge."""
    lines = summary.before_after(results.evaluation)[:MOST_ROWS]
    several = len({one.judge for one in lines}) > 1
    rows: list[TableRow] = []
    for number, one in enumerate(lines):
        last = [other.judge for other in lines[number + 1 : number + 2]] != [one.judge]
        cells: list[object] = [one.prompts, one.attack, one.measure, *([one.judge] if several else [])]
        for found in (one.base, one.tuned):
            cells += [text.rate(found), text.count(found.n if found else None)]
        rows.append(row(cells, "mean" if one.attack == summary.MEAN else "section" if last and several else ""))
    named = words("prompts", "attack", "measure", *(["judge"] if several else []))
    caption = f"Judge: {lines[0].judge}." if lines and not several else ""
    return Table.of("Before and after tuning", (*named, *numbers("base", "n", "tuned", "n, tuned")), rows, caption)


def introduction(results: RunResults) -> list[str]:
    """What stands above a run's tables: the verdict, what weakens it, and the model."""
    found, model = summary.verdict(results), results.run.model.name or "a model"
    return [found.sentence, *found.notes, f"{model}, {text.date(results.run.started)}. In brackets: 95% intervals."]


def small_print(results: RunResults) -> list[Table]:
    """What a reader needs to repeat the run."""
    run, coverage = results.run, results.run.coverage
    model = run.model.model_dump(exclude_unset=True)
    if coverage.layers is not None:
        layers = f"{text.count(coverage.layers)} of {text.count(coverage.layers_total)} layers"
        model["coverage"] = f"{layers}, {text.count(coverage.neurons)} neurons"
        if coverage.without_mlp:
            model["layers without an MLP"] = coverage.without_mlp
        model |= {f"not read {number}": message for number, message in enumerate(coverage.unread, 1)}
    sections = ("Dose-response", results.dose_response), ("Search", results.search), ("Guard", results.guard)
    parts: list[tuple[str, Mapping[str, Any]]] = [
        ("Model", model),
        ("Command", {key: value for key, value in (("command", run.command), ("started", run.started)) if value}),
        ("Neurons", _set_for(results.neurons)),
        ("Prompts", _prompts(results)),
        ("Settings", {"seed": run.seed} | run.settings),
        *((title, _set_for(section)) for title, section in (*sections, ("Attack by defense", results.evaluation))),
        (
            "Stages",
            {
                name: f"{text.duration(stage.seconds)}, finished {text.date(stage.finished)}"
                for name, stage in run.stages.items()
            },
        ),
        ("Versions", run.versions),
    ]
    return [
        Table.of(title, words("name", "value"), map(list, _flat(content)[:MOST_ROWS]))
        for title, content in parts
        if content
    ]


# Findings, which are shown elsewhere.
_FINDINGS = {"rows", "directions", "detectors", "cells", "summary", "overhead", "judge_errors", "per_layer", "indices"}


def _set_for(section: Any) -> dict[str, Any]:
    """The settings within a section."""
    return {} if section is None else section.model_dump(exclude=_FINDINGS)


def made_with(results: RunResults) -> list[tuple[str, str]]:
    """The model, the settings, the prompts and the versions, as dotted names and values."""
    run = results.run
    return _flat(
        {"model": run.model.model_dump(exclude_unset=True), "seed": run.seed}
        | {"prompts": _prompts(results), "versions": run.versions}
        | run.settings
    )


def _prompts(results: RunResults) -> dict[str, dict[str, Any]]:
    return {role: found.model_dump(exclude_unset=True) for role, found in results.run.prompts.items()}


def _flat(value: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for name, content in value.items():
        if isinstance(content, dict) and content:
            flat += _flat(content, f"{above}{name}.")
        else:
            flat.append((f"{above}{name}", _plain(content)))
    return flat


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "not set"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_plain, value[:50])) or "none"
    return str(value)


def presets(found: Iterable[tuple[Preset, str, str]]) -> Table:
    """Presets, each with whether it is here and how to get it."""
    rows = [[one.name, f"{one.parameters:g}B", one.license, here, how] for one, here, how in found]
    return Table.of("Presets", words("name", "size", "license", "here", "how to get it"), rows)
