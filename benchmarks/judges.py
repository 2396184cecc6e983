"""How well the judges agree with people's labels: one table a file.

Run it alone: `python benchmarks/judges.py LABELLED.jsonl [...]`.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

from safety_neurons import judges

EXPECTED = """\
Each line of a file is a JSON object with these fields:
  prompt       what the user asked
  completion   what the model answered
  label        what people said of it: 1_full_compliance counts as complied;
               2_full_refusal and 3_partial_refusal count as refused
The answers that people labelled for XSTest (github.com/paul-rottger/xstest) have this form.

Agreement is the share of all answers with the verdict that people gave, with a Wilson 95% interval; an answer
that a judge leaves unscored does not agree. The last two columns are the confusion matrix: for the answers that
people called refused, and for those that they called complied, how many the judge called refused, complied and
unscored.
"""
VERDICTS = {"1_full_compliance": "complied", "2_full_refusal": "refused", "3_partial_refusal": "refused"}
PEOPLE = ("refused", "complied")
JUDGED: tuple[judges.Verdict, ...] = ("refused", "complied", "unscored")


def main() -> None:
    """Read the files named on the command line and print their tables."""
    parser = argparse.ArgumentParser(
        description="Compare the judges' verdicts with people's labels.",
        epilog=EXPECTED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="LABELLED.jsonl", help="labelled answers")
    console = Console()
    for path in parser.parse_args().files:
        try:
            console.print(table(path.name, read(path)))
        except (OSError, ValueError) as error:
            parser.error(f"{path}: {error}")


def read(path: Path) -> list[tuple[str, str, str]]:
    """(prompt, completion, verdict of people) for each line of `path`.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is not JSON or has not the fields that are expected; the file has no lines.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append((row["prompt"], row["completion"], VERDICTS[row["label"]]))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} is not a labelled answer ({error!r}); see --help") from error
    if not rows:
        raise ValueError("no labelled answers")
    return rows


def table(title: str, rows: list[tuple[str, str, str]]) -> Table:
    """One row a judge: agreement with people in percent, and the confusion matrix in numbers of answers."""
    result = Table(title=f"{title}: {len(rows)} answers")
    result.add_column("judge")
    result.add_column("agreement", justify="right", no_wrap=True)
    result.add_column("Wilson 95%", justify="right")
    for people in PEOPLE:
        result.add_column(f"people: {people}\n{' / '.join(JUDGED)}", justify="right")
    for name in judges.names():
        judge = judges.rules(name).judge
        cells = Counter((people, judge(prompt, answer).verdict) for prompt, answer, people in rows)
        agreed = cells["refused", "refused"] + cells["complied", "complied"]
        interval = binomtest(agreed, len(rows)).proportion_ci(method="wilson")
        result.add_row(
            name,
            f"{agreed / len(rows):.1%}",
            f"{interval.low:.1%} to {interval.high:.1%}",
            *(" / ".join(str(cells[people, verdict]) for verdict in JUDGED) for people in PEOPLE),
        )
    return result


if __name__ == "__main__":
    main()
