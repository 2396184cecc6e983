"""Model folders of strangers: damaged in every way, endless, too large, or with code in them."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from hostile_models import DAMAGES, ENDLESS_TEMPLATES, NUMBERS, escaping_templates, set_value, write_code, write_pickle

from attack import forked
from attack.outcome import Tally, tracked
from attack.subject import Subject
from safety_neurons.core.progress import Listener

# A model that cannot be used has to be refused within this time.
SECONDS = 60.0
CODE_CLASSES = {
    "AutoConfig": "hostile.HostileConfig",
    "AutoModelForCausalLM": "hostile.HostileModel",
    "AutoTokenizer": ["hostile.HostileTokenizer", "hostile.HostileTokenizer"],
}


def hostile_models(subject: Subject, work: Path, listener: Listener) -> Tally:
    """`find` on each hostile model: it works, or is refused by a message that names the model, and no code runs."""
    tally = Tally("model folders")
    own = subject.options[subject.options.index("--model") + 1]
    marker = work / "ran"
    for name, change in tracked(tally, list(_changes(Path(own), marker)), listener):
        folder, run = work / "model", work / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(own, folder)
        change(folder)
        options = [str(folder) if option == own else option for option in subject.options]
        ended = forked.run(("find", str(run), *options), seconds=SECONDS)
        if marker.exists():
            tally.note("ran code", name, ended.output)
            marker.unlink()
        if ended.status is None:
            tally.note("hang", name, ended.output)
        elif ended.crashed:
            tally.note("traceback", name, ended.output)
        elif ended.status != 0 and str(folder) not in "".join(ended.output.split()):
            tally.note("unnamed", name, ended.output)
        if ended.status == 2 and run.exists():
            tally.note("lost", name, "a run that never began left a folder")
    return tally


def _changes(model: Path, marker: Path) -> Iterator[tuple[str, Callable[[Path], object]]]:
    for file in sorted(path.name for path in model.iterdir()):
        for what, damage in DAMAGES.items():
            yield f"{file}: {what}", partial(_damaged, damage, file)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    for key in (name for name, value in config.items() if isinstance(value, int | float)):
        for number in NUMBERS:
            yield f"{key} = {number!r:.20}", partial(_numbered, key, number)
    for what, template in (ENDLESS_TEMPLATES | escaping_templates(marker)).items():
        yield f"template: {what}", partial(_templated, template)
    for file in ("config.json", "tokenizer_config.json", "generation_config.json"):
        yield f"code named in {file}", partial(_coded, file, marker)
    for file in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        yield f"a pickle as {file}", partial(_pickled, file, marker)


def _damaged(damage: Callable[[Path], None], file: str, folder: Path) -> None:
    damage(folder / file)


def _numbered(key: str, number: object, folder: Path) -> None:
    set_value(folder / "config.json", key, number)


def _templated(text: str, folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def _coded(file: str, marker: Path, folder: Path) -> None:
    write_code(folder, marker)
    if not (folder / file).exists():
        (folder / file).write_text("{}", encoding="utf-8")
    set_value(folder / file, "auto_map", CODE_CLASSES)
    if file == "config.json":
        set_value(folder / file, "model_type", "hostile")


def _pickled(file: str, marker: Path, folder: Path) -> None:
    write_pickle(folder / file, marker)
    if file == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
