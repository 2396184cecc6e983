"""The advice in error messages leads on: it is read out of the message, followed to the letter, and the command works.

The commands run on a copy of one small run, whose folder has a name that needs quotes.
"""

import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from builders.commands import inside, one_paragraph
from builders.judges import BY_PROMPT
from builders.runs import Splits, small_run
from safety_neurons.cli.advice import with_options
from safety_neurons.prompts import named
from safety_neurons.runs.pipeline import run

# What messages write where only the user knows the value.
TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}{% endfor %}"
# The rules of `by_prompt` are code, which the command line has to name.
JUDGE = ("--evaluate.judge", BY_PROMPT.name)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return small_run(
        tmp_path_factory.mktemp("advice"),
        Splits(6, 2, 3),
        find={"percent": 20.0, "positions": 3, "score": "write-contrast"},
        explain={"random_sets": 0},
        calibrate={"prompt_positions": 3},
        guard={"percent": 20.0, "false_positive_rate": 0.2, "alpha": 2.0},
        tune={"answer_tokens": 3, "epochs": 1, "batch_size": 4, "samples": 1, "largest_share": 1.0},
        evaluate={"answer_tokens": 3, "attacks": ["direct"], "judge": BY_PROMPT.name},
    )


@pytest.fixture(scope="module")
def whole(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, given)
    return folder


@dataclass
class Scene:
    """A copy of the run, and what the user knows: the settings of the run, and values of his own."""

    run: Path
    place: Path
    given: dict[str, Any]
    monkeypatch: pytest.MonkeyPatch
    execute: Callable[[Sequence[str]], tuple[Any, str]]

    @property
    def settings(self) -> list[str]:
        """The settings of the run as options."""
        options = []
        for name, value in self.given.items():
            for part, one in value.items() if isinstance(value, dict) else [("", value)]:
                option = f"--{name}.{part}" if part else f"--{name}"
                options += [option.replace("_", "-"), *map(str, one if isinstance(one, list) else [one])]
        return options


@pytest.fixture
def scene(
    given: dict[str, Any],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Scene:
    monkeypatch.setenv("COLUMNS", "9000")
    monkeypatch.setenv("SAFETY_NEURONS_CACHE", str(tmp_path / "cache"))

    def execute(arguments: Sequence[str]) -> tuple[Any, str]:
        capsys.readouterr()
        code = inside(monkeypatch, *arguments)
        return code, capsys.readouterr().err.strip()

    return Scene(Path(shutil.copytree(whole, tmp_path / "a run")), tmp_path, given, monkeypatch, execute)


def option(message: str, arguments: list[str], _: Scene) -> list[str]:
    """Set an option to the value in the message, which names the option of the command line at its end."""
    advised = re.search(r"(?:Set|[Rr]aise|Lower) [a-z._]+ to '?([\w.]*\w)'?", message)
    flag = re.search(r"On the command line: (--[\w.-]*\w)", message)
    assert advised, message
    assert flag, message
    return replaced(arguments, flag[1], advised[1])


def second_option(message: str, arguments: list[str], scene: Scene) -> list[str]:
    """The same for the second of several advices."""
    rest = re.sub(r"(Set|Lower) [a-z._]+ to \S+,", "", message).replace("set ", "Set ", 1)
    return option(re.sub(r"line: \S+, ", "line: ", rest), arguments, scene)


def third_option(message: str, arguments: list[str], scene: Scene) -> list[str]:
    rest = re.sub(r"(Lower|set) [a-z._]+ to \S+,", "", message)
    return option(re.sub(r"line: \S+, \S+, ", "line: ", rest), arguments, scene)


def replaced(arguments: list[str], flag: str, *values: str) -> list[str]:
    """The arguments with other values for an option, or without it if there are none."""
    kept = list(arguments)
    if flag in kept:
        start = kept.index(flag)
        end = next((place for place in range(start + 1, len(kept)) if kept[place].startswith("--")), len(kept))
        del kept[start:end]
    return [*kept, flag, *values] if values else kept


def omit(message: str, arguments: list[str], _: Scene) -> list[str]:
    assert "omit" in message, message
    flag = re.search(r"omit (--[\w.-]*\w)", message) or re.search(r"On the command line: (--[\w.-]*\w)", message)
    assert flag, message
    return replaced(arguments, flag[1])


def add(message: str, arguments: list[str], _: Scene) -> list[str]:
    found = re.search(r"add (--[\w-]+)", message)
    assert found, message
    return [*arguments, found[1]]


def file_in(message: str) -> Path:
    found = re.match(r"Error: (?:The \w+ \w+ )?(/.+?) (?:is|are|has|holds|does|cannot|exists) ", message)
    assert found, message
    return Path(found[1])


def delete(message: str, arguments: list[str], _: Scene) -> list[str]:
    assert re.search(r"(?:Delete|[Rr]emove) it\b", message), message
    file_in(message).unlink()
    return arguments


def move(message: str, arguments: list[str], scene: Scene) -> list[str]:
    assert "Move it away" in message, message
    file_in(message).rename(scene.place / "moved")
    return arguments


def command(message: str, arguments: list[str], scene: Scene) -> list[str]:
    """Run the command that the message ends with; in place of MODEL and so on are what the user knows."""
    found = re.search(r": safety-neurons (.*)$", message)
    assert found, message
    words = shlex.split(found[1])
    if words[-2:] == ["--model", "MODEL"]:
        words = [*words[:-2], *scene.settings]
    if "LABELED.jsonl" in words:
        labeled = scene.place / "labeled.jsonl"
        rows = [f'{{"prompt": "p", "response": "I cannot {n}.", "label": "{n}"}}' for n in ("refused", "complied")]
        labeled.write_text("\n".join(rows), encoding="utf-8")
        words = [str(labeled) if word == "LABELED.jsonl" else word for word in words]
    words = [str(scene.run) if word == "TARGETS" else word for word in words]
    code, said = scene.execute(words if words[0] == "judge" or JUDGE[0] in words else [*words, *JUDGE])
    assert code == 0, f"{words}: {said}"
    return arguments


def delete_and_command(message: str, arguments: list[str], scene: Scene) -> list[str]:
    return command(message, delete(message, arguments, scene), scene)


def another_folder(message: str, arguments: list[str], scene: Scene) -> list[str]:
    assert re.search(r"[Cc]hoose another folder", message), message
    mine = str(file_in(message))
    return [str(scene.place / "another folder") if word == mine else word for word in arguments]


def meant(message: str, arguments: list[str], _: Scene) -> list[str]:
    """Take the name that was meant in place of the one that does not exist."""
    found = re.search(r"'([^']+)'.*Did you mean ([\w-]+)", message)
    assert found, message
    return [found[2] if word == found[1] else word for word in arguments]


def rename(message: str, arguments: list[str], scene: Scene) -> list[str]:
    found = re.search(r"Its columns are (\w+).*[Rr]ename the one with the prompts to `(\w+)`", message)
    assert found, message
    path = file_in(message)
    path.write_text(path.read_text(encoding="utf-8").replace(found[1], found[2], 1), encoding="utf-8")
    return arguments


def column(message: str, arguments: list[str], _: Scene) -> list[str]:
    known = re.search(r"Its columns are (\w+)", message)
    flag = re.search(r"On the command line: (--column)", message)
    assert known, message
    assert flag, message
    return [*arguments, flag[1], known[1]]


def template(message: str, arguments: list[str], scene: Scene) -> list[str]:
    flag = re.search(r"On the command line: (--chat-template)", message)
    assert flag, message
    path = scene.place / "template.jinja"
    path.write_text(TEMPLATE, encoding="utf-8")
    return [*arguments, flag[1], str(path)]


def save_as(message: str, arguments: list[str], scene: Scene) -> list[str]:
    found = re.search(r"or save it as (.+?); or", message)
    assert found, message
    Path(found[1]).parent.mkdir(parents=True)
    shutil.copy(scene.given["harmful"], scene.place / "copy.jsonl")
    rows = [f'"Tell me how to harm person {n} with a plan.","Sure"' for n in range(40)]
    Path(found[1]).write_text("\n".join(["goal,target", *rows]), encoding="utf-8")
    return arguments


def another_device(message: str, arguments: list[str], _: Scene) -> list[str]:
    found = re.search(r"Choose another, such as (\w+)\.", message)
    assert found, message
    return replaced(arguments, "--device", found[1])


def nothing(_: Scene) -> None:
    """The command fails by its arguments."""


def written(name: str, content: bytes = b"{") -> Callable[[Scene], None]:
    def damage(scene: Scene) -> None:
        (scene.run / name).write_bytes(content)

    return damage


def in_its_place(name: str, kind: str) -> Callable[[Scene], None]:
    def damage(scene: Scene) -> None:
        path = scene.run / name
        path.unlink(missing_ok=True)
        if kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(scene.given["harmful"])

    return damage


def without(*names: str) -> Callable[[Scene], None]:
    def remove(scene: Scene) -> None:
        for name in names:
            (scene.run / name).unlink()

    return remove


def both(*damages: Callable[[Scene], None]) -> Callable[[Scene], None]:
    def damage(scene: Scene) -> None:
        for one in damages:
            one(scene)

    return damage


def only_found(scene: Scene) -> None:
    shutil.rmtree(scene.run)
    run(scene.run, scene.given, until="find")


def foreign(scene: Scene) -> None:
    shutil.rmtree(scene.run)
    scene.run.mkdir()
    (scene.run / "letter.txt").write_text("mine", encoding="utf-8")


def two_columns(scene: Scene) -> None:
    path = scene.place / "two.csv"
    path.write_text("one,two\n" + "\n".join(f"Harm {n} in a way.,b{n}" for n in range(40)), encoding="utf-8")


def without_template(scene: Scene) -> None:
    model = Path(shutil.copytree(scene.given["model"], scene.place / "base"))
    (model / "chat_template.jinja").unlink()


def empty_corpus(scene: Scene) -> None:
    (scene.place / "empty.jsonl").write_text("", encoding="utf-8")


GUARD = ("guard", "RUN", "--no-answers", *JUDGE)
NEW = ("find", "NEW", "SETTINGS")
CASES: dict[str, tuple[Callable[[Scene], None], tuple[str, ...], Callable[[str, list[str], Scene], list[str]]]] = {
    "no room for random neurons": (nothing, ("calibrate", "RUN", *JUDGE, "--find.percent", "80"), option),
    "no room in an experiment": (
        nothing,
        ("experiment", "dose-response", "RUN", "--alphas", "0,2", *JUDGE, "--find.percent", "80"),
        option,
    ),
    "too small a guard": (nothing, (*GUARD, "--guard.percent", "0.3"), option),
    "too large a guard": (nothing, (*GUARD, "--guard.percent", "90"), option),
    "rate of a guard": (nothing, (*GUARD, "--guard.false-positive-rate", "0.01"), option),
    "layer of a guard": (nothing, (*GUARD, "--guard.layer", "7"), option),
    "no layer of a guard": (nothing, (*GUARD, "--guard.layer", "7"), omit),
    "fewer positions": (nothing, ("calibrate", "RUN", *JUDGE, "--calibrate.prompt-positions", "5"), option),
    "pooled directions": (nothing, ("calibrate", "RUN", *JUDGE, "--calibrate.prompt-positions", "5"), second_option),
    "more directions": (nothing, ("calibrate", "RUN", *JUDGE, "--calibrate.prompt-positions", "5"), third_option),
    "search": (nothing, ("tune", "RUN", "--trials", "1", *JUDGE), add),
    "damaged record": (written("run.json"), ("tune", "RUN", *JUDGE), delete),
    "damaged record, for tokens": (written("run.json"), ("tokens", "RUN", "Hello"), delete),
    "damaged record without a copy": (
        both(written("run.json"), without("results.json")),
        ("tokens", "RUN", "Hello"),
        delete_and_command,
    ),
    "lost record": (without("run.json", "results.json"), ("tokens", "RUN", "Hello"), command),
    "damaged results, for report": (written("results.json"), ("report", "RUN"), command),
    "damaged results, for compare": (written("results.json"), ("compare", "RUN", "RUN"), command),
    "damaged results, for merge": (written("results.json"), ("merge", "RUN", "NEW"), command),
    "no results": (without("results.json"), ("report", "RUN"), command),
    "damaged neurons": (written("neurons.safetensors"), ("tokens", "RUN", "Hello"), command),
    "damaged delta": (written("delta.safetensors"), ("merge", "RUN", "NEW"), command),
    "no tuning": (only_found, ("merge", "RUN", "NEW"), command),
    "no evaluation": (only_found, ("compare", "RUN", "RUN"), command),
    "no folder of an evaluation": (nothing, ("compare", "NEW", "NEW"), command),
    "no run": (nothing, ("tokens", "NEW", "Hello"), command),
    "no run to report on": (nothing, ("report", "NEW"), command),
    "counts of a judge": (
        nothing,
        ("evaluate", "RUN", *JUDGE, "--evaluate.judges", "refusal", "--evaluate.judge-errors", "ERRORS"),
        command,
    ),
    "folder of something else": (foreign, ("run", "--out", "RUN", "SETTINGS"), another_folder),
    "another model's folder": (nothing, ("run", "--out", "RUN", "SETTINGS", "--borderline", "BENIGN"), another_folder),
    "merged before": (lambda scene: (scene.place / "new").mkdir(), ("merge", "RUN", "NEW"), another_folder),
    "another schema": (written("run.json", b'{"schema": 1}'), ("run", "--out", "RUN", "SETTINGS"), another_folder),
    "folder for a cache": (
        in_its_place("responses.jsonl", "folder"),
        ("tune", "RUN", *JUDGE, "--tune.epochs", "2"),
        move,
    ),
    "folder for neurons": (in_its_place("neurons.safetensors", "folder"), ("tune", "RUN", *JUDGE), move),
    "folder for a guard": (in_its_place("guard.safetensors", "folder"), GUARD, move),
    "folder for results": (in_its_place("results.json", "folder"), ("run", "--out", "RUN", *JUDGE), move),
    "link for a cache": (in_its_place("verdicts.jsonl", "link"), ("tune", "RUN", *JUDGE, "--tune.epochs", "2"), delete),
    "damaged checkpoint": (
        written(".checkpoint.safetensors"),
        ("tune", "RUN", *JUDGE, "--tune.learning-rate", "0.001"),
        delete,
    ),
    "score": (nothing, ("find", "RUN", *JUDGE, "--find.score", "write-contrats"), meant),
    "attack": (nothing, ("evaluate", "RUN", *JUDGE, "--evaluate.attacks", "bose64"), meant),
    "defense": (nothing, ("evaluate", "RUN", *JUDGE, "--evaluate.defenses", "self-remindr"), meant),
    "column to rename": (two_columns, (*NEW, "--harmful", "TWO"), rename),
    "column": (
        two_columns,
        (
            "find",
            "NEW",
            "--model",
            "MODEL",
            "--harmful",
            "TWO",
            "--find.prompts",
            "4",
            "--find.score",
            "write-contrast",
        ),
        column,
    ),
    "chat template": (without_template, (*NEW, "--model", "BASE"), template),
    "empty corpus": (empty_corpus, ("tune", "RUN", *JUDGE, "--tune.corpus", "EMPTY"), omit),
    "no settings file": (nothing, ("find", "RUN", *JUDGE, "--config", "ERRORS"), omit),
    "no network": (nothing, (*NEW, "--harmful", "advbench"), save_as),
    "device": (nothing, (*NEW, "--device", "cuda:77"), another_device),
}


@pytest.mark.parametrize("case", CASES)
def test_advice_leads_on(case: str, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(url: str) -> NoReturn:
        raise named.DownloadError("no connection")

    monkeypatch.setattr(named, "download", offline)
    damage, words, follow = CASES[case]
    damage(scene)
    known = {"RUN": str(scene.run), "NEW": str(scene.place / "new"), "BENIGN": scene.given["benign"]}
    known |= {"TWO": str(scene.place / "two.csv"), "BASE": str(scene.place / "base"), "MODEL": scene.given["model"]}
    known |= {"EMPTY": str(scene.place / "empty.jsonl"), "ERRORS": str(scene.place / "the errors.json")}
    arguments: list[str] = []
    for word in words:
        if word == "SETTINGS":
            arguments += scene.settings
        elif word.startswith("--"):
            # One that is named later counts.
            arguments = [*replaced(arguments, word), word]
        else:
            arguments.append(known.get(word, word))
    code, message = scene.execute(arguments)
    message = message[message.rfind("Error: ") :]
    assert code == 2, message
    assert one_paragraph(message)
    code, said = scene.execute(follow(message, arguments, scene))
    assert code == 0, f"{message}\n{said}"


@pytest.mark.parametrize(
    ("message", "arguments", "said"),
    [
        ("Raise find.percent.", ["find", "R"], "--find.percent"),
        ("Lower learning_rate.", ["tune", "R"], "--tune.learning-rate"),
        ("Raise trials, or lower tune.learning_rate.", ["tune", "R"], "--trials, --tune.learning-rate"),
        ("Set shard=False.", ["tune", "R"], "--tune.no-shard"),
        ("Choose one by its name (chat_template).", ["run"], "--chat-template"),
        ('Load them with dtype="float32".', ["run"], "--dtype"),
        # Not options of this command, of no command, or not unique.
        ("Raise find.percent.", ["merge", "R"], None),
        ("Raise find.percent.", [], None),
        ("Raise percent.", ["run"], None),
        # Nothing to set: a file, a section, words of English.
        ("The file /a/find.percent/run.json is damaged. Choose another model, or run find.", ["run"], None),
        ("give trust_remote_code=True (--trust-remote-code)", ["run"], None),
    ],
)
def test_the_command_line_adds_its_options(message: str, arguments: list[str], said: str | None) -> None:
    expected = message if said is None else f"{message} On the command line: {said}."
    assert with_options(message, arguments) == expected
