"""An evaluation that is killed with -9 at random moments ends as one that nobody disturbed.

Run it alone: `python benchmarks/kills.py OUT [--kills 20] -- TARGET --evaluate.attacks ... --evaluate.prompts N`. After
`--` come arguments of `safety-neurons evaluate`, without --out.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from safety_neurons.cli.console import console, print_error
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import read_json

# Seconds until a start answers.
LOADING = 10
KEPT = ("responses.jsonl", "verdicts.jsonl")


def command(arguments: list[str], out: Path) -> list[str]:
    """The evaluation as a process of its own."""
    return [sys.executable, "-m", "safety_neurons", "evaluate", *arguments, "--out", str(out)]


def killed(arguments: list[str], out: Path, kills: int, longest: float, seed: int) -> int:
    """Start the evaluation again and again, and kill it after a random time; how often it was killed.

    The last start is left alone. One that ends by itself before it is killed ends the series early.
    """
    chance = random.Random(seed)
    for number in range(kills):
        process = subprocess.Popen(command(arguments, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=chance.uniform(0, longest))
            return number
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            console.print(f"kill {number + 1}: {len(keys_in(out / KEPT[0]))} answers kept")
    subprocess.run(command(arguments, out), check=True, stdout=subprocess.DEVNULL)
    return kills


def main() -> None:
    """Read the command line, disturb, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("arguments", nargs="+", metavar="ARGUMENT", help="of safety-neurons evaluate, after --")
    given = parser.parse_args()
    if given.out.exists():
        parser.error(f"{given.out} exists: name a new folder.")
    given.out.mkdir(parents=True)
    started = time.monotonic()
    if subprocess.run(command(given.arguments, given.out / "undisturbed"), check=False).returncode:
        print_error("The evaluation itself failed: see above.")
        sys.exit(2)
    # A kill comes at any moment of a start, from the first import on; on average each start gets on by its share.
    longest = 2 * (time.monotonic() - started) / given.kills + 2 * LOADING
    try:
        kills = killed(given.arguments, given.out / "killed", given.kills, longest, given.seed)
        compare(given.out, kills)
    except SafetyNeuronsError as error:
        print_error(str(error))
        sys.exit(2)


def keys_in(path: Path) -> list[str]:
    """The keys of a cache's whole lines."""
    return [json.loads(line)["key"] for line in path.read_text().splitlines() if line.endswith("}")]


def compare(out: Path, kills: int) -> None:
    """Results, and what was kept: the same lines, none of them twice.

    Raises:
        SafetyNeuronsError: something differs.
    """
    results = [read_json(out / name / "evaluation.json") for name in ("undisturbed", "killed")]
    for result in results:
        del result["command"]
    if results[0] != results[1]:
        raise SafetyNeuronsError(f"After {kills} kills the results in {out} differ.")
    for name in KEPT:
        keys = [keys_in(out / folder / name) for folder in ("undisturbed", "killed")]
        if sorted(keys[0]) != sorted(keys[1]) or len(set(keys[1])) != len(keys[1]):
            raise SafetyNeuronsError(f"After {kills} kills {name} in {out} holds other lines, or one twice.")
    answers = len(keys_in(out / "killed" / KEPT[0]))
    console.print(f"{kills} kills: the same results, and each of {answers} answers computed once.")


if __name__ == "__main__":
    main()
