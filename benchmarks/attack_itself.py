"""Attacks on the tool itself: what a stranger's files, a kill, a full disk or a second process can do.

`make attack` runs all of it on a tiny model, and prints one table. Run it alone: it takes hours on two cores.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from attack.damage import damage
from attack.kills import full_disk, kill, together
from attack.models import hostile_models
from attack.outcome import Lines, Tally, as_json, table
from attack.secrets import secrets
from attack.strings import hostile_strings
from attack.subject import Subject, finished, tiny_subject
from attack.trust import foreign_runs, links

from safety_neurons.cli.console import console, print_tables
from safety_neurons.core.files import write_json
from safety_neurons.core.progress import Listener
from safety_neurons.core.visible import visible

NAMES = ("damage", "links", "models", "trust", "strings", "secrets", "kills", "together", "disks")
# Bytes of disks on which a run ends at different moments.
DISKS = tuple(4096 * 2**step for step in range(2, 13))


def mounted(folder: Path, size: int) -> bool:
    """Make `folder` a disk of this size, or another size than before, or with 0 a folder again."""
    if size == 0:
        command = ["umount", str(folder)]
    else:
        change = ["-o", f"remount,size={size}"] if folder.is_mount() else ["-o", f"size={size}"]
        command = ["mount", "-t", "tmpfs", *change, "tmpfs", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def attacks(
    options: argparse.Namespace, subject: Subject, work: Path, listener: Listener
) -> dict[str, Callable[[], Sequence[Tally]]]:
    """Every attack by name."""
    return {
        "damage": lambda: damage(subject, work / "damage", options.share, options.seed, listener),
        "links": lambda: [links(subject, work / "links", listener)],
        "models": lambda: [hostile_models(subject, work / "models", listener)],
        "trust": lambda: [foreign_runs(subject, work / "trust", listener)],
        "strings": lambda: [hostile_strings(subject, work / "strings", listener)],
        "secrets": lambda: [secrets(subject, work / "secrets")],
        "kills": lambda: kill(subject, work / "kills", options.kills, options.seed),
        "together": lambda: [together(subject, work, options.kills, count) for count in (2, 3)],
        "disks": lambda: [full_disk(subject, work, DISKS, mounted)],
    }


def main() -> None:
    """Read the command line, attack, and print what was done and what harm it did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="ATTACK", help=f"{', '.join(NAMES)}; default: all")
    parser.add_argument("--share", type=float, default=1.0, help="part of the damage matrix to try (default: 1)")
    parser.add_argument("--kills", type=int, default=20, help="kills of each command, and tries together (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every harm, with what was seen, to this file")
    parser.add_argument("--options", nargs=argparse.REMAINDER, help="of `run`, for another model than the tiny one")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no attack {', '.join(sorted(unknown))}; the attacks are {', '.join(NAMES)}")
    listener = Lines()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        base = work / "subject"
        # Kills and the like begin runs of their own.
        used = {"run"} if set(options.names) <= {"kills", "together", "disks"} and options.names else None
        subject = finished(base, tuple(options.options), used) if options.options else tiny_subject(base)
        tallies: list[Tally] = []
        for name in options.names or NAMES:
            tallies += attacks(options, subject, work, listener)[name]()
            # Written as it goes on: all of it takes hours.
            if options.json is not None:
                write_json(options.json, as_json(tallies))
    print_tables([table(tallies)])
    for tally in tallies:
        for harm in tally.harms[:3]:
            console.print(f"{harm.kind}: {visible(harm.where)}: {visible(harm.seen[-300:])}", markup=False)
    sys.exit(any(tally.harms for tally in tallies))


if __name__ == "__main__":
    main()
