"""Which of transformers' causal language models `find_neurons` reads: one table, a row an architecture.

Run it alone: `python benchmarks/architectures.py [--only NAME ...] [--json PATH]`. Each architecture is built tiny and
random from its configuration, so nothing is downloaded.
"""

import argparse
import dataclasses
import json
import textwrap
import warnings
from collections import Counter
from pathlib import Path

import torch
import transformers
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from tiny_models import tiny_model
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.markdown import escaped
from safety_neurons.core.visible import line
from safety_neurons.models.neurons.discovery import find_neurons

OUTCOMES = {
    "exact": "every layer's neurons are found and add up to what the layer writes",
    "partial": "the neurons of some layers are found",
    "refused": "find_neurons says that it cannot read the model, and why",
    "failed": "find_neurons raised something else",
    "not built": "no tiny model could be built or run from text here",
}
STYLES = {"exact": "green", "partial": "yellow", "refused": "yellow", "failed": "red", "not built": "dim"}


@dataclasses.dataclass(frozen=True)
class Row:
    """What happened with one architecture."""

    model_type: str
    model_class: str
    outcome: str
    detail: str


def main() -> None:
    """Build and read the architectures named on the command line, or all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="\n".join(f"{name:<10} {meaning}" for name, meaning in OUTCOMES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="model types, such as llama, or names of classes")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the rows here")
    parser.add_argument("--markdown", type=Path, metavar="PATH", help="also write the table here, for the docs")
    arguments = parser.parse_args()
    known = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    wanted = set(arguments.only or known)
    if unknown := wanted - known.keys() - set(known.values()):
        parser.error(
            f"no causal language model in transformers {transformers.__version__}: {', '.join(sorted(unknown))}"
        )
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    # The matrices are too small to share: threads would only wait for each other.
    torch.set_num_threads(1)
    chosen = [(name, known[name]) for name in known if {name, known[name]} & wanted]
    rows = [read(*pair) for pair in track(chosen, console=Console(stderr=True), transient=True)]
    if arguments.json:
        arguments.json.write_text(
            json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8"
        )
    if arguments.markdown:
        arguments.markdown.write_text(markdown(rows), encoding="utf-8")
    console = Console()
    console.print(table(rows))
    console.print(summary(rows))


def read(model_type: str, model_class: str) -> Row:
    """Build one architecture and look for its neurons; a failure of any kind is a row of the table."""
    try:
        model = running_model(model_type)
    except Exception as error:  # noqa: BLE001
        return Row(model_type, model_class, "not built", f"{type(error).__name__}: {one_line(error)}")
    try:
        _, coverage = find_neurons(model, allow_partial=True)
    except SafetyNeuronsError as error:
        return Row(model_type, model_class, "refused", one_line(error))
    except Exception as error:  # noqa: BLE001
        return Row(model_type, model_class, "failed", f"{type(error).__name__}: {one_line(error)}")
    outcome = "partial" if coverage.unread else "exact"
    return Row(model_type, model_class, outcome, ": ".join([str(coverage), *coverage.unread[:1]]))


def running_model(model_type: str) -> PreTrainedModel:
    """A tiny model that has answered six tokens with finite numbers."""
    model = tiny_model(model_type)
    tokens = torch.arange(2, 8)[None]
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
    if not logits.isfinite().all():
        raise ValueError("its logits are not finite")
    return model


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def table(rows: list[Row]) -> Table:
    """A row an architecture."""
    title = f"Causal language models of transformers {transformers.__version__}"
    result = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("model type", "class", "outcome", "what was found"):
        result.add_column(column, overflow="fold", no_wrap=column == "outcome")
    for row in rows:
        detail = escape(line(textwrap.shorten(row.detail, 250, placeholder=" ...")))
        result.add_row(row.model_type, row.model_class, f"[{STYLES[row.outcome]}]{row.outcome}[/]", detail)
    return result


def markdown(rows: list[Row]) -> str:
    """The same as a page: what is not exact with its reason, and the names of what is."""
    lines = ["| model type | class | outcome | why |", "|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: list(OUTCOMES).index(row.outcome)):
        if row.outcome != "exact":
            reason = textwrap.shorten(row.detail, 230, placeholder=" ...")
            lines.append(f"| {row.model_type} | `{row.model_class}` | {row.outcome} | {escaped(reason)} |")
    exact = ", ".join(row.model_type for row in rows if row.outcome == "exact")
    head = f"With transformers {transformers.__version__}: {summary(rows)}"
    return "\n\n".join([head, "\n".join(lines), f"Exact: {exact}."]) + "\n"


def summary(rows: list[Row]) -> str:
    """The counts, and the share of the architectures and of the classes built that are read exactly."""
    counts = Counter(row.outcome for row in rows)
    built = len(rows) - counts["not built"]
    text = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES)
    return f"{len(rows)} architectures: {text}.\nExact among those built: {counts['exact']}/{built}" + (
        f" ({counts['exact'] / built:.1%})" if built else ""
    )


if __name__ == "__main__":
    main()
