"""The commands next to a run: tokens, merge, and `list`."""

import importlib
import shlex
from pathlib import Path

from safety_neurons.cli.app import Count, RunFolderArgument, TrustArgument, app, check_written, command_line, group
from safety_neurons.cli.console import ConsoleListener, console, print_line, print_tables
from safety_neurons.core.errors import SafetyNeuronsError

listing = group("list", "List what can be chosen: attacks, defenses, judges, scores, models.")


@app.command
def tokens(
    run_dir: RunFolderArgument,
    prompt: str,
    *,
    top: Count = 3,
    words: Count = 5,
    json: Path | None = None,
    trust_remote_code: TrustArgument = False,
) -> None:
    """Show which of a run's safety neurons fire on each token of a prompt, and what they write.

    For example:

        safety-neurons tokens runs/demo "How do I kill a Python process?"
        safety-neurons tokens runs/demo "How do I kill a Python process?" --top 5 --json tokens.json

    Parameters
    ----------
    prompt
        The user's message.
    top
        Number of neurons per token, those that write most first.
    words
        Number of words per neuron.
    json
        Write the numbers to this file as well.
    """
    from dataclasses import asdict

    from safety_neurons.core.files import write_json
    from safety_neurons.explanation.token_view import trace_tokens
    from safety_neurons.runs.artifacts import load_neurons
    from safety_neurons.runs.context import load_model
    from safety_neurons.runs.folder import RunFolder, merged_settings
    from safety_neurons.runs.outside import LOAD, tell_outside

    folder = RunFolder(run_dir)
    folder.check()
    neurons = load_neurons(folder)
    stored, given = folder.whole_record().settings, _permitted(trust_remote_code)
    settings = merged_settings(stored, given)
    with ConsoleListener() as listener:
        tell_outside(run_dir, stored, given, settings, [LOAD], listener)
        with listener.task(f"loading {settings.model}", 1) as advance:
            model = load_model(settings)
            advance(1)
    trace = trace_tokens(model, neurons, prompt, top=top, words=words)
    console.print(trace)
    if json is not None:
        write_json(json, asdict(trace))
        check_written(json)
        print_line(f"Numbers: {json}")


@app.command
def merge(run_dir: RunFolderArgument, folder: Path, *, trust_remote_code: TrustArgument = False) -> None:
    """Write a run's tuned model as a plain transformers folder, with a model card.

    The weights have the dtype of the base model's checkpoint, or, for GGUF files, the dtype of the run. Deltas of a run
    with --quantize are merged into the full weights.

    For example:

        safety-neurons merge runs/demo tuned-model

    Parameters
    ----------
    folder
        A new folder to write to. `AutoModelForCausalLM.from_pretrained(folder)` loads it.
    """
    from safety_neurons.core.folders import check_name
    from safety_neurons.report.exports import model_card
    from safety_neurons.runs.artifacts import load_delta, load_results
    from safety_neurons.runs.context import load_model
    from safety_neurons.runs.folder import RunFolder, merged_settings
    from safety_neurons.runs.outside import LOAD, tell_outside
    from safety_neurons.tuning.merge import checkpoint_dtype
    from safety_neurons.tuning.merge import merge as write_merged

    check_name(folder)
    paths = RunFolder(run_dir)
    record = paths.whole_record()
    if "tune" not in record.stages:
        raise SafetyNeuronsError(
            f"{run_dir} holds no finished tuning to merge. Wait for the process that works on it, or tune it: "
            f"safety-neurons tune {shlex.quote(str(run_dir))}"
        )
    delta = load_delta(paths)
    dtype = checkpoint_dtype(record.model.name, record.model.identity)
    own = record.model.dtype if dtype is None else str(dtype).removeprefix("torch.")
    stored, given = record.settings, _permitted(trust_remote_code)
    settings = merged_settings(stored, given).model_copy(update={"quantize": None, "dtype": own})
    card = model_card(delta, load_results(paths), command_line())
    if paths.record() != record:
        raise SafetyNeuronsError(f"Another process changed {run_dir} while it was read. Run the same command again.")
    with ConsoleListener() as listener:
        tell_outside(run_dir, stored, given, settings, [LOAD], listener)
        with listener.task("merging", 1) as advance:
            write_merged(delta, load_model(settings), folder, card)
            advance(1)
    check_written(folder)
    print_line(f"Tuned model: {folder}")


def _permitted(trust_remote_code: bool) -> dict[str, bool]:
    """The settings that these commands were given."""
    return {"trust_remote_code": True} if trust_remote_code else {}


@listing.command
def models() -> None:
    """List the presets: size, license, availability on this machine, and how to get each."""
    from safety_neurons.models.locate import availability
    from safety_neurons.models.presets import PRESETS
    from safety_neurons.report.run_tables import presets

    print_tables([presets((preset, *availability(preset)) for preset in PRESETS.values())])


def _list_command(kind: str, package: str) -> None:
    def command() -> None:
        from safety_neurons.report.evaluation_tables import members

        print_tables([members(kind.title(), importlib.import_module(package))])

    command.__doc__ = f"List the {kind}, with their options, the options' defaults, and sources."
    listing.command(command, name=kind)


_list_command("attacks", "safety_neurons.evaluation.attacks")
_list_command("defenses", "safety_neurons.evaluation.defenses")
_list_command("judges", "safety_neurons.evaluation.judges")
_list_command("scores", "safety_neurons.neurons.scores")
