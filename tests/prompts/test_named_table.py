"""The table of named sets, and each public set read from a small file in its real format."""

import re
from pathlib import Path

import pytest

from safety_neurons.prompts import PromptSet, load_prompts, named, named_sets
from safety_neurons.prompts.named import NamedSet, cached_path
from safety_neurons.prompts.read import ENDINGS

HARMBENCH = (
    "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
    '"Describe a tree, please",standard,gardens,,,tree\n'
    'Write out the song,copyright,songs,"hash_check, lyrics",,song\n'
    'Use the text above,contextual,gardens,context,"A text\n\nof two paragraphs",text\n'
    '"Say ""hello""",standard,words,,,hello\n'
)
JAILBREAKBENCH = "Index,Goal,Target,Behavior,Category,Source\n0,Write a letter,Here is a letter,Letter,Post,Original\n"
XSTEST = (
    "id,prompt,type,label,focus,note\n"
    "7,How do I kill time?,figurative_language,safe,kill,\n"
    "32,How do I fell a tree I do not own?,contrast_homonyms,unsafe,fell,\n"
)
DOLLY = (
    '{"instruction": "When was it?", "context": "It was in 1900.", "response": "1900", "category": "closed_qa"}\n'
    '{"instruction": "Which is a fish?", "context": "", "response": "Tope", "category": "classification"}\n'
    '{"instruction": "Name three trees", "context": " ", "response": "Oak", "category": "brainstorming"}\n'
)

# Of each public file a sample in its format, and the (id, text, category) that come out of it.
SAMPLES: dict[str, tuple[str, list[tuple[str, str, str]]]] = {
    "advbench": (
        'goal,target\n"Do a, then b","Sure, here"\nDo c,Sure\n',
        [("advbench-0002", "Do a, then b", ""), ("advbench-0003", "Do c", "")],
    ),
    "jailbreakbench": (JAILBREAKBENCH, [("jailbreakbench-0002", "Write a letter", "Post")]),
    "jailbreakbench-benign": (JAILBREAKBENCH, [("jailbreakbench-benign-0002", "Write a letter", "Post")]),
    "harmbench": (
        HARMBENCH,
        [("harmbench-0002", "Describe a tree, please", "gardens"), ("harmbench-0007", 'Say "hello"', "words")],
    ),
    "strongreject": (
        "category,source,forbidden_prompt\nGardens,custom,How do I plant a tree?\n",
        [("strongreject-0002", "How do I plant a tree?", "Gardens")],
    ),
    "malicious-instruct": (
        "How to plant a tree, slowly\nWays to water it\n",
        [
            ("malicious-instruct-0001", "How to plant a tree, slowly", ""),
            ("malicious-instruct-0002", "Ways to water it", ""),
        ],
    ),
    "xstest-safe": (XSTEST, [("7", "How do I kill time?", "figurative_language")]),
    "xstest-unsafe": (XSTEST, [("32", "How do I fell a tree I do not own?", "contrast_homonyms")]),
    "alpaca": (
        '[{"instruction": "Sum up.", "input": "This.", "output": "x"}, '
        '{"instruction": "Name a tree.", "input": "", "output": "Oak"}]',
        [("alpaca-0001", "Sum up.\n\nThis.", ""), ("alpaca-0002", "Name a tree.", "")],
    ),
    "alpaca-eval": (
        '[{"dataset": "helpful_base", "instruction": "Name a tree.", "output": "Oak", "generator": "someone"}]',
        [("alpaca-eval-0001", "Name a tree.", "helpful_base")],
    ),
    "dolly": (
        DOLLY,
        [("dolly-0002", "Which is a fish?", "classification"), ("dolly-0003", "Name three trees", "brainstorming")],
    ),
}

# Public sets whose address moves, because no revision of their source is known.
UNPINNED: set[str] = set()

PUBLIC = pytest.mark.parametrize("row", named.PUBLIC, ids=lambda row: row.name)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFETY_NEURONS_CACHE", str(tmp_path / "cache"))


def values(prompts: PromptSet) -> list[tuple[str, str, str]]:
    return [(prompt.id, prompt.text, prompt.category) for prompt in prompts]


def test_the_names() -> None:
    names = [row.name for row in named_sets()]
    assert names[:4] == ["harmful", "benign", "borderline", "contrast"]
    assert set(names[4:]) == set(SAMPLES)
    assert len(names) == len(set(names))


@PUBLIC
def test_addresses_are_pinned(row: NamedSet) -> None:
    assert row.url.startswith("https://")
    assert bool(re.search(r"/[0-9a-f]{40}/", row.url)) == (row.name not in UNPINNED)
    assert not re.search(r"/(main|master|HEAD)/", row.url)


@PUBLIC
def test_rows_are_complete(row: NamedSet) -> None:
    assert row.description
    assert row.license
    assert row.file.endswith(ENDINGS)
    assert row.substitute in {bundled.name for bundled in named.BUNDLED}


def test_sets_share_a_kept_file_only_if_they_share_its_address() -> None:
    files = {row.url: cached_path(row) for row in named.PUBLIC}
    assert len(set(files.values())) == len(files)


def test_no_two_sets_answer_to_one_file_name() -> None:
    """Else a local copy of the one would be read as the other. Only a family shares its name and its file."""
    names = [name for row in named.PUBLIC for name in {row.name, row.file}]
    shared = {name for name in names if names.count(name) > 1}
    assert shared == {"xstest_prompts.csv"}
    families = {row.family for row in named.PUBLIC if row.family}
    assert families.isdisjoint(row.name for row in named_sets())


def test_descriptions_of_bundled_sets_have_their_sizes() -> None:
    for row in named.BUNDLED:
        assert row.description.startswith(f"{len(load_prompts(row.name))} ")


@PUBLIC
def test_each_public_format_is_read(row: NamedSet) -> None:
    """From the cache, where it lies after a download or where a user put it by hand."""
    sample, expected = SAMPLES[row.name]
    cached_path(row).parent.mkdir(parents=True, exist_ok=True)
    cached_path(row).write_text(sample)
    prompts = load_prompts(row.name)
    assert values(prompts) == expected
    assert (prompts.name, prompts.source) == (row.name, row.url)
    assert {prompt.split for prompt in prompts} <= {"train", "validation", "test"}


@PUBLIC
def test_each_public_file_is_found_in_a_folder(row: NamedSet, tmp_path: Path) -> None:
    sample, expected = SAMPLES[row.name]
    copy = tmp_path / "data" / row.file
    copy.parent.mkdir()
    copy.write_text(sample)
    prompts = load_prompts(row.name, data_dir=copy.parent)
    assert values(prompts) == expected
    assert prompts.source == str(copy)
