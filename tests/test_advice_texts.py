"""What error messages name exists: commands, options, settings, extras, variables, files. And they say what to do."""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import safety_neurons
from safety_neurons.cli.app import commands
from safety_neurons.runs.folder import RunFolder
from safety_neurons.settings import Settings

SOURCE = Path(safety_neurons.__file__).parent
ERRORS = {"SafetyNeuronsError", "DivergedError", "CannotRunError", "NotFiniteError", "UnreadableLayer"}
SAID = {"say", "said_once", "warn", "problem", "unusable"}
# What a message tells the user to do; "must" and "needs" say which value is right.
ADVICE = re.compile(
    r"\b(must|needs?|raise|lower|delete|remove|choose|run|give|set|use|make|load|try|find|pass|name|correct|wait|move"
    r"|install|repeat|get|fit|tune|train|put|add|omit|leave|start|change|call|write|save|download|unpack|export|rename"
    r"|quote|fill|mend|evaluate|merge|reinstall|trust|open|free|close|report|take|search|unset|shorten|check)\b",
    re.IGNORECASE,
)
# Beginnings of messages of which the end, not seen in the source, says what to do.
CONTINUED = (
    "The server at {} redirects",
    # The caller adds what leads on.
    "{} is not a JailbreakBench artifact",
    "{} sent a web page",
    "{} {}: {} --model MODEL",
)
# Read by other packages: huggingface_hub, httpx, kaleido, transformers, and Python itself.
FOREIGN_VARIABLES = {
    "TORCHELASTIC_RUN_ID",
    *("HF_TOKEN", "HF_HUB_OFFLINE", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("BROWSER_PATH", "TENSORBOARD_LOGGING_DIR"),
}
# Options of pip, which messages give after its name.
FOREIGN_OPTIONS = {"--force-reinstall", "--no-deps"}
# Files of models, and what commands write next to a run's own files.
OTHER_FILES = {
    *(
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "model.safetensors",
        "tokenizer.json",
        "adapter_model.safetensors",
    ),
    *("evaluation.json", "scores.json", "comparison.html"),
}


class Message(NamedTuple):
    """A message in the source, with {} in place of its values; `ends` is false where a value ends it."""

    place: str
    text: str
    raised: bool
    ends: bool


def text_of(node: ast.expr) -> tuple[str, bool] | None:
    """A string with {} in place of its values, and whether its own words end it; None for everything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value, True
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
        return "".join(map(str, parts)), str(parts[-1]).strip(" .") not in {"{}", ""} and parts[-1] != "{}"
    return None


@cache
def messages() -> tuple[Message, ...]:
    return tuple(found for path in sorted(SOURCE.rglob("*.py")) for found in _messages(path))


def _messages(path: Path) -> Iterator[Message]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    raised = {id(node.exc) for node in ast.walk(tree) if isinstance(node, ast.Raise)}
    # Advice that is kept under a name, such as AGAIN, or returned.
    named = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.Return)}
    for node in ast.walk(tree):
        place = f"{path.relative_to(SOURCE)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ERRORS | SAID:
                for argument in node.args[:1] if name in ERRORS else node.args:
                    if (found := text_of(argument)) is not None:
                        yield Message(place, found[0], name == "SafetyNeuronsError" and id(node) in raised, found[1])
        elif isinstance(node, ast.expr) and id(node) in named and (found := text_of(node)) is not None:
            yield Message(place, found[0], False, True)


def in_messages(pattern: str) -> dict[str, str]:
    """What a pattern finds in the messages, and where."""
    return {found: message.place for message in messages() for found in re.findall(pattern, message.text)}


def unknown(found: dict[str, str], known: set[str]) -> list[str]:
    return sorted(f"{place}: {name}" for name, place in found.items() if name not in known)


def test_every_message_is_read() -> None:
    assert len([message for message in messages() if message.raised]) > 300


def test_commands_exist() -> None:
    found = in_messages(r"(?:^|`|: )safety-neurons ([a-z-]+(?: [a-z-]+)?)")
    known = {name for name, _ in commands()}
    assert len(found) > 4
    assert not [
        f"{place}: {words}" for words, place in found.items() if words not in known and words.split()[0] not in known
    ]


def test_options_exist() -> None:
    known = {name for _, command in commands() for one in command.assemble_argument_collection() for name in one.names}
    found = in_messages(r"(?<![\w-])--[a-z][a-z.-]*[a-z]")
    assert len(found) > 5
    assert not unknown(found, known | FOREIGN_OPTIONS)


def test_settings_exist() -> None:
    sections = {
        name: set(type(getattr(Settings(), name)).model_fields)
        for name in ("find", "explain", "calibrate", "guard", "tune", "evaluate")
    }
    found = in_messages(rf"(?<![\w./-])(?:{'|'.join(sections)})\.[a-z][a-z0-9_-]*")
    assert len(found) > 10
    assert not unknown(found, {f"{name}.{field}" for name, fields in sections.items() for field in fields})


def test_extras_exist() -> None:
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def normalized(name: str) -> str:
        # As pip compares the names of extras (PEP 685).
        return re.sub(r"[-_.]+", "-", name).lower()

    found = {normalized(name): place for name, place in in_messages(r"safety-neurons\[([\w.-]+)\]").items()}
    assert len(found) > 3
    assert not unknown(found, set(map(normalized, project["optional-dependencies"])))


def test_variables_are_read() -> None:
    found = in_messages(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]*[A-Z0-9]\b")
    code = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    read = set(re.findall(r"""environ(?:\.get\(|\[)\s*["'](\w+)["']""", code))
    told = {name for name in found if re.search(rf"\b{name}\b", " ".join(m.text for m in messages() if m.raised))}
    assert "SAFETY_NEURONS_CACHE" in told
    assert not unknown({name: found[name] for name in told}, read | FOREIGN_VARIABLES)


def test_files_exist() -> None:
    own = {
        getattr(RunFolder(Path()), name).name
        for name, value in vars(RunFolder).items()
        if isinstance(value, property) and name not in {"lost_record", "command"}
    }
    found = in_messages(r"(?<![\w/.}-])[a-z_]+\.(?:jsonl?|safetensors|html)\b")
    assert {"run.json", "results.json"} <= found.keys()
    assert not unknown(found, own | OTHER_FILES)


@pytest.mark.parametrize(
    "message",
    [message for message in messages() if message.raised and message.ends],
    ids=lambda message: message.place,
)
def test_every_error_says_what_to_do(message: Message) -> None:
    if not message.text.startswith(CONTINUED):
        assert ADVICE.search(message.text), message.text
