"""Parquet in and out on the command line."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.command_line import ASSISTQ, Installation


def test_a_parquet_file_goes_in_and_results_come_out_as_parquet(shell: Installation) -> None:
    rows = 5
    table = pa.table(
        {"custom_id": list(range(rows)), "review": [f"a good thing no {number};" for number in range(rows)]}
    )
    reviews = shell.directory / "reviews.parquet"
    pq.write_table(table, reviews)
    ended = shell.run("run", reviews, "--assistant", shell.sentiment(), "--out", "out.parquet", "--json")
    assert ended.code == 0, ended.err
    results = pq.read_table(shell.directory / "out.parquet")
    assert results.column("custom_id").to_pylist() == [str(number) for number in range(rows)]
    assert set(results.column("output").to_pylist()) == {"positive"}

    command = [ASSISTQ, "results", ended.json["batch_id"], "--format", "parquet"]
    piped = subprocess.run(command, env=shell.env, cwd=shell.directory, check=True, capture_output=True).stdout
    assert pq.read_table(io.BytesIO(piped)).equals(results)


def test_a_bad_row_of_a_parquet_file_is_named_by_row_and_column_before_anything_is_sent(shell: Installation) -> None:
    reviews = shell.directory / "reviews.parquet"
    pq.write_table(pa.table({"review": ["a good thing", None]}), reviews)
    ended = shell.run("submit", reviews, "--assistant", shell.sentiment())
    ended.refused("reviews.parquet, row 2, column 'review': variable 'review'", "nothing was enqueued")


def test_without_the_library_a_run_ends_before_it_begins(shell: Installation) -> None:
    none = Path(shell.directory, "none", "pyarrow")
    none.mkdir(parents=True)
    (none / "__init__.py").write_text("raise ImportError('there is none')\n")
    environment = {"PYTHONPATH": str(none.parent)}
    ended = shell.run(
        "run", shell.reviews(2), "--assistant", shell.sentiment(), "--out", "out.parquet", env=environment
    )
    ended.refused("--out", "out.parquet", "there is none", "pip install 'assistq[parquet]'")
    shell.nothing_left()
