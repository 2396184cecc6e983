"""Calibration of the found neurons beside other ways to steer, each at the same effect on the model as a whole.

Run it alone: `python benchmarks/calibration_rivals.py RUN --data-dir COPIES --on jailbreakbench:alpaca`. COPIES holds
copies of the public sets. A killed benchmark resumes when the same command is run again.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rivals.contract import Lessons
from rivals.measured import FOUND, NAMES, RANDOM, Bench, summarize
from rivals.table import tables

from safety_neurons.cli.app import given_settings
from safety_neurons.cli.console import ConsoleListener, console, print_error
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import write_json, write_text
from safety_neurons.core.plugins import unknown_name
from safety_neurons.core.progress import Listener
from safety_neurons.core.tables import markdown
from safety_neurons.core.terminal import TerminalTable
from safety_neurons.experiments.equal_effect import TOLERANCE
from safety_neurons.experiments.intervention import KL_TOKENS, NLL_LIMIT, InterventionRunner
from safety_neurons.runs.folder import overridden
from safety_neurons.runs.opened import opened, prompts_to_test

METHOD = f"""\
All rivals learn from the run's training prompts. Each is scaled by bisection to the same KL(base || steered) on the
benign validation prompts, over the first {KL_TOKENS} tokens of the base model's own answers, to within
{TOLERANCE:.0%}; toward rejection, too, as that is what a change does to ordinary use. A rival's layer, position or size
of the set is the one with the largest effect on the validation prompts at the middle level. found: calibration of the
run's find.score with the run's positions and tokens; random: as many random neurons of each layer as found, several
sets; difference in means: CAA (Rimsky et al. 2024), added after one layer to the end of the prompt and all generated
tokens; refusal direction: Arditi et al. 2024, ablated in all layers toward conformity, added after one toward
rejection, at all tokens; scav: Xu et al. 2024, probes in all layers, at the last prompt token and all generated ones.
Changed: neurons, or values of the residual stream after all layers, that a rival changes, and their share of all of
that kind. Effect: harmful prompts answered, benign prompts refused, of all prompts; an incoherent answer (the judge
cannot read it, or its negative log-likelihood under the base model is above {NLL_LIMIT} nats per token) counts as
neither. Intervals: Wilson's; for several sets, and for differences, a paired bootstrap over prompts. KL here: on the
benign prompts of the test.
"""


@dataclass(frozen=True)
class Options:
    """What is compared: KL levels in nats per token, sizes of the found sets in percent of the neurons."""

    on: Sequence[str] = ()
    rivals: Sequence[str] = NAMES
    levels: Sequence[float] = (0.1, 0.3, 1.0, 3.0)
    percents: Sequence[float] = (0.03, 0.1, 0.3)
    layers: int = 6
    seeds: int = 3

    def check(self) -> None:
        """Raises SafetyNeuronsError where something cannot be compared."""
        for name in self.rivals:
            if name not in NAMES:
                raise SafetyNeuronsError(unknown_name("rival", name, list(NAMES)))
        if RANDOM in self.rivals and FOUND not in self.rivals[: self.rivals.index(RANDOM)]:
            raise SafetyNeuronsError(f"{RANDOM} has the size of {FOUND}: name {FOUND} before it in --rivals.")
        for name in ("rivals", "levels", "percents"):
            given: Sequence[Any] = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise SafetyNeuronsError(f"Give at least one of --{name}, and each of them once.")
        if not all(0 < level < 100 for level in self.levels):
            raise SafetyNeuronsError("--levels are nats per token above 0, such as 0.3.")
        if not all(0 < percent <= 100 for percent in self.percents):
            raise SafetyNeuronsError("--percents are above 0 and at most 100.")
        for name in ("layers", "seeds"):
            if getattr(self, name) < 1:
                raise SafetyNeuronsError(f"--{name} must be at least 1.")


def benchmark(
    path: Path, given: Mapping[str, Any], options: Options, listener: Listener | None = None, command: str = ""
) -> dict[str, Any]:
    """Compare all rivals over one run's folder; calibration_rivals.md and calibration_rivals.json are written there.

    Raises:
        SafetyNeuronsError: bad input, or a failure that the message explains.
    """
    options.check()
    with opened(path, given, listener, command, on=options.on) as run:
        lessons = Lessons.read(run, options.layers, options.percents)
        validation = {name: run.split(name, "validation", None) for name in ("harmful", "benign")}
        tests = {name or "test": prompts_to_test(run, name) for name in (None, *options.on)}
        bench = Bench(
            lessons,
            InterventionRunner.open(run, validation),
            {name: InterventionRunner.open(run, sets) for name, sets in tests.items()},
            options.rivals,
            options.levels,
            options.seeds,
        )
        rows = summarize(list(bench.measured()), run.settings.seed)
        results = {
            "method": " ".join(METHOD.split()),
            "command": command,
            "model": {"name": run.model.name, "identity": run.model.identity},
            "settings": run.settings.to_record(),
            "options": asdict(options),
            "training_prompts": {"harmful": len(lessons.harmful), "benign": len(lessons.benign)},
            "validation_prompts": {name: len(prompts) for name, prompts in validation.items()},
            "rows": rows,
        }
        write_json(path / "calibration_rivals.json", results)
        found = tables(rows)
        write_text(path / "calibration_rivals.md", markdown(found, [" ".join(METHOD.split())], command))
        for table in found:
            run.listener.say(TerminalTable(table))
    return results


def main() -> None:
    """Read the command line, compare, and print the tables."""
    parser = argparse.ArgumentParser(
        description="Compare calibration with other ways to steer.",
        epilog=METHOD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = Options()
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, new or with neurons that were found")
    parser.add_argument("--data-dir", type=Path, metavar="COPIES", help="a folder with copies of the public sets")
    parser.add_argument("--config", type=Path, metavar="TOML", help="settings of the run, as for safety-neurons run")
    parser.add_argument("--prompts", type=int, help="prompts of each test set, at most; default: evaluate.prompts")
    parser.add_argument("--on", nargs="*", default=defaults.on, metavar="HARMFUL:BENIGN", help="more pairs to test on")
    parser.add_argument("--rivals", nargs="*", default=defaults.rivals, help=", ".join(NAMES))
    parser.add_argument("--levels", nargs="*", type=float, default=defaults.levels, help="KL in nats per token")
    parser.add_argument("--percents", nargs="*", type=float, default=defaults.percents, help="sizes of the found sets")
    parser.add_argument("--layers", type=int, default=defaults.layers, help="layers that are tried, spread evenly")
    parser.add_argument("--seeds", type=int, default=defaults.seeds, help="number of random sets")
    options = vars(parser.parse_args())
    path, data_dir, prompts = (options.pop(name) for name in ("run", "data_dir", "prompts"))
    try:
        given = given_settings(None, options.pop("config"))
        if data_dir is not None:
            given["data_dir"] = str(data_dir)
        if prompts is not None:
            given = overridden(given, {"evaluate": {"prompts": prompts}})
        with ConsoleListener() as listener:
            benchmark(path, given, Options(**options), listener, shlex.join(sys.argv))
    except SafetyNeuronsError as error:
        print_error(str(error))
        sys.exit(2)
    where = {"Tables": path / "calibration_rivals.md", "Numbers": path / "calibration_rivals.json"}
    console.print("   ".join(f"{name}: {file}" for name, file in where.items()), soft_wrap=True)


if __name__ == "__main__":
    main()
