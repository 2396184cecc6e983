"""Every kind of table in a terminal of 80 and of 120 columns: nothing too wide, broken inside a word, or lost."""

import importlib
import io
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from builders.report import cell, extended_grid, full, mapped, other_run, rate, share
from safety_neurons.core.tables import Table, TableCell, numbers, words
from safety_neurons.core.terminal import TerminalTable, split
from safety_neurons.core.visible import visible
from safety_neurons.evaluation.judge_errors import JudgeErrors
from safety_neurons.models.presets import PRESETS
from safety_neurons.report import (
    PARTS,
    RunResults,
    evaluation_tables,
    experiment_tables,
    intervention_tables,
    run_tables,
    tables_of,
)
from safety_neurons.report.comparison import comparison_tables
from safety_neurons.report.results import Evaluation

ATTACKS = (
    *("direct", "prefix-injection", "refusal-suppression", "prefill", "base64", "conformity-calibration"),
    *("many-shot:shots=8", "translation:language=zulu", "attacks/of-mine/persona_modulation.py:PERSONA"),
)
DEFENSES = (
    *("none", "safetuning", "self-reminder", "smoothllm:copies=4", "perplexity-filter", "retokenization"),
    *("safedecoding", "guard", "path/to/my_defenses.py:ShortRequests"),
)
JUDGES = ("refusal", "strongreject:endpoint=http://127.0.0.1:8000/v1,model=qwen2.5-coder-1.5b")
SAFE = ("benign", "borderline", "xstest-safe", "jailbreakbench-benign")
MODELS = ("qwen2.5-coder-1.5b", "meta-llama/Llama-3.1-8B-Instruct (runs/llama)")


def wide_evaluation(
    attacks: tuple[str, ...], defenses: tuple[str, ...], models: tuple[str, ...] = MODELS, safe: tuple[str, ...] = SAFE
) -> Evaluation:
    """Every attack and every safe set against every defense, with all measures."""
    section = extended_grid()
    against = {"value": -0.5, "low": -0.75, "high": -0.25, "p": 0.001, "n": 97}
    judged = rate(0.484, n=3, unscored=13) | {"verdicts": ["complied", "refused"] * 2, "against_none": against}
    section["cells"] = [
        cell("none", "direct")
        | {"model": model, "defense": defense, "attack": attack, "prompts": prompts}
        | {"judges": dict.fromkeys(JUDGES, judged)}
        for model, defense in itertools.product(models, defenses)
        for attack, prompts in (*((attack, "harmful") for attack in attacks), *(("direct", name) for name in safe))
    ]
    summed = {"attacks": list(attacks), "attack_success": rate(0.5), "corrected": rate(0.4), "against_none": against}
    section["summary"] = [
        {"model": model, "defense": defense, "judge": judge, "over_refusal": {name: rate(0.05) for name in safe}}
        | summed
        for model, defense, judge in itertools.product(models, defenses, JUDGES)
    ]
    section["overhead"] = [
        {"model": model, "defense": defense, "ratio": 1.38, "low": 1.25, "high": 1.5}
        for model, defense in itertools.product(models, defenses)
    ]
    mean = {"value": 1234.5, "low": 1200.0, "high": 1300.25}
    who = [{"model": model, "defense": defense} for model, defense in itertools.product(models, defenses)]
    ordinary = {
        "words": mean,
        "looping": share(0.25),
        "blocked": share(0.25),
        "kl_divergence": mean,
        "perplexity": mean,
    }
    wins = {"wins": 10, "ties": 11, "losses": 12, "swayed": 13, "unscored": 14, "rate": share(0.25)}
    metrics = {"acc_norm,none": {"value": 0.5, "stderr": 0.01}}
    section["utility"] = [one | ordinary for one in who]
    section["preferences"] = [one | {"win_rate": wins, "grades": {"mean": mean, "unscored": 1}} for one in who]
    change = {"value": -0.25, "low": -0.5, "high": -0.125}
    section["gsm8k"] = [one | {"exact_match": share(0.25), "cut_off": share(0), "difference": change} for one in who]
    section["tasks"] = [one | {"results": {"arc_challenge_of_many_words": {"metrics": metrics}}} for one in who]
    section |= {"models": list(models), "judges": {judge: {"source": "arXiv 2402.10260"} for judge in JUDGES}}
    section["attacks"] = {name: {"source": "a paper"} for name in attacks}
    section["defenses"] = {name: {"source": "a paper"} for name in defenses}
    return Evaluation.model_validate(section)


def labeled(judge: str, source: str) -> JudgeErrors:
    return JudgeErrors(judge, source, 90, 5, 3, 4, 88, 6)


def scores() -> dict[str, Any]:
    """A comparison of nine scores at five budgets."""
    names = ["write-contrast", "gradient", "effect-size", "contrast", "magnitude", "random", "removal", "wanda"]
    names.append("path/to/scores.py:MY_SCORE")
    budgets = [0.05, 0.1, 0.5, 1.0, 3.0]
    rows = [
        {
            **{"score": name, "percent": budget, "toward": toward, "neurons": 12345, "dose": 2.0, "value": 0.48},
            **{"low": 0.44, "high": 0.52, "unscored": 3, "differs_from_random": True, "against_random": 0.1},
        }
        for name, budget, toward in itertools.product(names, budgets, ("conformity", "rejection"))
    ]
    about = {"jaccard": 0.5, "spearman": 0.5, "seconds": 12.0, "peak_bytes": 2**33, "significant": 12345, "halves": 5}
    overlap = {"percent": 0.5, "scores": names, "jaccard": [[0.25] * len(names)] * len(names)}
    return {
        "rows": rows,
        "budgets": budgets,
        "overlap": overlap,
        "scores": [
            about
            | {"score": name, "formula": "|mean_h a - mean_b a| ||r||", "tokens": "last", "scope": "layer"}
            | {"source": "arXiv 2406.14144"}
            for name in names
        ],
    }


def tables() -> Iterator[Table]:
    """Every kind of table that the project prints."""
    content = full() | {"evaluation": extended_grid()}
    results = RunResults.of(content)
    yield from tables_of(results, "neurons", "words", "training", *PARTS).tables
    yield from run_tables.small_print(results)
    yield run_tables.vocabulary(results)
    yield run_tables.vocabulary_layers(results)
    yield run_tables.clouds(results)
    yield run_tables.single_neurons(RunResults.of(mapped()))
    yield run_tables.presets((preset, "not here", f"pip install {preset.name}") for preset in PRESETS.values())
    assert results.search
    yield from map(intervention_tables.intervention_trials, results.search.directions)
    runs = dict.fromkeys(("demo", "qwen2.5-coder-1.5b-gradient-2-percent", "third", "4th-run"), results)
    yield from comparison_tables(runs | {"other": RunResults.of(other_run())})
    for attacks, defenses in ((ATTACKS, DEFENSES[:2]), (ATTACKS, DEFENSES), (ATTACKS[:2], DEFENSES)):
        yield from evaluation_tables.evaluation_tables(wide_evaluation(attacks, defenses))
    judged = [labeled(judge, source) for judge in JUDGES for source in ("labelled.jsonl", "answers/of-gpt4.jsonl")]
    yield from evaluation_tables.judge_check_tables(judged)
    yield from experiment_tables.scores(scores())
    yield experiment_tables.formulas(scores())
    for family in ("evaluation.attacks", "evaluation.defenses", "evaluation.judges", "neurons.scores"):
        yield evaluation_tables.members(family, importlib.import_module(f"safety_neurons.{family}"))
    difference = {"value": -0.5, "low": -0.75, "high": -0.25}
    sides = {side: rate(0.48) for side in ("first", "second")}
    yield evaluation_tables.comparison_table(
        [
            {
                **{"defenses": defenses, "attack": attack, "prompts": prompts, "judge": judge, "adjusted_p": 0.001},
                **{"difference": difference, "gained": ["a"], "lost": ["b"] * 12},
            }
            | sides
            for defenses, attack, prompts, judge in zip(
                itertools.pairwise(DEFENSES), ATTACKS, itertools.cycle(SAFE), itertools.cycle(JUDGES), strict=False
            )
        ],
        "runs/before",
        "runs/after",
    )


ALL = list(tables())


def printed(table: Table, width: int, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding, errors="replace")
    console = Console(width=width, file=file)
    console.print(TerminalTable(table))
    file.flush()
    return file.buffer.getvalue().decode(encoding).splitlines()


def texts(table: Table, number: int) -> list[str]:
    return [visible(table.columns[number].name), *(visible(one.cells[number].text) for one in table.rows)]


def joined(lines: tuple[str, ...], text: str) -> bool:
    """Whether the lines are the text, broken between words or, inside a name, after a sign."""
    left = " ".join(text.split())
    for line in lines:
        if not left.startswith(line) or (
            line and left != line and left[len(line)] != " " and line[-1] not in "-_:=.,/"
        ):
            return False
        left = left[len(line) :].lstrip()
    return not left


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("table", ALL, ids=[f"{number}-{visible(one.title, 30)}" for number, one in enumerate(ALL)])
def test_every_table_is_readable(table: Table, width: int) -> None:
    lines = printed(table, width)
    assert max(map(cell_len, lines)) <= width
    columns = range(len(table.columns))
    everything = [
        visible(table.title),
        visible(table.caption),
        *(text for one in columns for text in texts(table, one)),
    ]
    lost = Counter("".join("".join(everything).split())) - Counter("".join(lines))
    assert not lost
    parts, seen = split(table, width), set()
    for part in parts:
        assert " ".join(part[0].cells[0]) == " ".join(parts[0][0].cells[0]), "each part says what its rows are"
        for one in part:
            same = [
                column
                for column in columns
                if all(joined(mine, text) for mine, text in zip(one.cells, texts(table, column), strict=True))
            ]
            assert same, one.cells
            seen |= set(same)
    assert seen == set(columns)


def test_a_grid_of_nine_attacks_by_two_defenses_has_attacks_as_rows() -> None:
    tall = evaluation_tables.grids(wide_evaluation(ATTACKS, DEFENSES[:2]))[0].cells
    assert [column.name for column in tall.columns] == ["attack", "none", "safetuning"]
    assert [one.cells[0].value for one in tall.rows] == list(ATTACKS)
    assert len(split(tall, 80)) == 1
    wide = evaluation_tables.grids(wide_evaluation(ATTACKS[:2], DEFENSES))[0].cells
    assert [column.name for column in wide.columns] == ["defense", *ATTACKS[:2]]
    assert [one.cells[0].value for one in wide.rows] == list(DEFENSES)


def test_both_ways_around_hold_the_same_cells() -> None:
    found = wide_evaluation(ATTACKS[:3], DEFENSES[:4])
    wide = evaluation_tables.grids(found)[0].cells
    tall = evaluation_tables.grids(wide_evaluation((*ATTACKS[:3], "extra-1", "extra-2"), DEFENSES[:4]))[0].cells
    for number, defense in enumerate(DEFENSES[:4]):
        assert wide.rows[number].cells[0].value == defense
        for place in range(3):
            assert tall.rows[place].cells[1 + number].text == wide.rows[number].cells[1 + place].text


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_no_character_of_a_frame_is_lost(encoding: str) -> None:
    table = Table.of("t", (*words("a"), *numbers("b")), [["x", "1"], ["y", "2"]])
    assert not any("?" in line for line in printed(table, 80, encoding))


@pytest.mark.parametrize("width", [12, 20, 40])
def test_a_word_longer_than_its_column_is_folded(width: int) -> None:
    table = Table.of("t", (*words("name"), *numbers("n")), [["W" * 50, TableCell("1", "(2)")], ["\u6f22" * 30, "3"]])
    lines = printed(table, width)
    assert max(map(cell_len, lines)) <= width
    assert "".join(lines).count("W") == 50
    assert "".join(lines).count("\u6f22") == 30


def test_numbers_are_never_broken() -> None:
    table = Table.of(
        "t", (*words("a"), *numbers(*"bcdefgh")), [["1.25e-09 2026-11-30 0.5", *["(0.44\N{EN DASH}0.52)"] * 7]]
    )
    for part in split(table, 50):
        for one in part:
            assert set(" ".join(one.cells[1]).split()) <= {"1.25e-09", "2026-11-30", "0.5", "(0.44\N{EN DASH}0.52)"}
