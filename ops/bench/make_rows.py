"""Write a CSV of ROWS product reviews with labels, the same every time: `ops/bench/make_rows 1e6 rows.csv`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import click

COLUMNS = ("custom_id", "review", "product", "label")
ASSISTANT = """\
assistant: bench/reviews/sentiment
model: bench
template:
  - {role: user, content: "Review: {{ review }}"}
output: {type: enum, enum: [positive, negative]}
max_tokens: 8
"""


class Count(click.ParamType[int]):
    """A number of rows, also written as 1e6."""

    name = "rows"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return it as a whole number above 0."""
        try:
            count = float(str(value))
        except ValueError:
            count = 0.0
        if count < 1 or not count.is_integer():
            self.fail(f"'{value}' is no number of rows", param, ctx)
        return int(count)


def rows(count: int, *, edition: int = 0) -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows; a review has some 80 characters, and each fourth one quotes, commas and an umlaut."""
    for number in range(count):
        good = number % 2 == 0
        said = "boils fast, and looks good" if good else "leaks, and the lid is loose"
        more = ', says "Jürgen" too' if number % 4 == 0 else ""
        yield (
            f"row-{edition}-{number:07d}",
            f"The kettle no {number} {said}{more}. I have had it for {number % 37} weeks.",
            f"p-{number % 997}",
            "positive" if good else "negative",
        )


def write(path: Path, count: int, *, edition: int = 0) -> int:
    """Write the file, no two editions of which are equal; return the mean size of a row's values, in bytes."""
    size_bytes = 0
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows(count, edition=edition):
            writer.writerow(row)
            size_bytes += sum(len(value.encode()) for value in row)
    return round(size_bytes / count)


@click.command(help=__doc__)
@click.argument("count", metavar="ROWS", type=Count())
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
def main(count: int, path: Path) -> None:
    """Write the file."""
    write(path, count)


if __name__ == "__main__":
    main()
