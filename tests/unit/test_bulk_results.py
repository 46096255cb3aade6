from __future__ import annotations

import csv
import io
import json
import os
import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.bulk.results import COLUMNS, write_results
from schemas import InputError, JobResult, Status

HEADER = "custom_id,job_id,status,output,thread_id,model,prompt_tokens,completion_tokens,attempts,error_code,error\n"


def result_of(**parts: Any) -> JobResult:
    known = {
        "job_id": "b1-0",
        "status": Status.SUCCEEDED,
        "assistant": "demo/reviews/sentiment",
        "model": "smollm2-135m",
        "prompt_tokens": 12,
        "completion_tokens": 7,
        "attempts": 1,
        "finished_at": datetime(2026, 11, 21, tzinfo=UTC),
    }
    return JobResult.model_validate(known | parts)


def csv_of(*results: JobResult) -> str:
    out = io.StringIO()
    assert write_results(results, out, format="csv") == len(results)
    return out.getvalue()


def test_csv_has_exactly_the_columns_of_the_design_in_order_with_lf_line_ends():
    failed = result_of(job_id="b1-1", status="failed", model=None, error_code="bad_row", error='in.csv:3: "x", y')
    assert csv_of(result_of(custom_id="r1", thread_id="t1", output="positive"), failed) == (
        HEADER
        + "r1,b1-0,succeeded,positive,t1,smollm2-135m,12,7,1,,\n"
        + ',b1-1,failed,,,,12,7,1,bad_row,"in.csv:3: ""x"", y"\n'
    )


@pytest.mark.parametrize(
    ("output", "cell"),
    [
        ("=1+1", "=1+1"),
        ('{"a": 1}', '{"a": 1}'),
        ({"café": [1, None]}, '{"café":[1,null]}'),
        ([], "[]"),
        (False, "false"),
        (0, "0"),
        (None, ""),
    ],
)
def test_text_stands_in_csv_as_it_is_and_other_outputs_as_compact_json(output, cell):
    (row,) = csv.DictReader(io.StringIO(csv_of(result_of(output=output)), newline=""))
    assert row["output"] == cell


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_output_text_reads_back_from_csv(text):
    (row,) = csv.DictReader(io.StringIO(csv_of(result_of(output=text)), newline=""))
    assert row["output"] == text


def test_jsonl_keeps_values_as_they_are():
    out = io.StringIO()
    write_results([result_of(output={"é": 1}), result_of(status="failed", error="x")], out, format="jsonl")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert tuple(first) == COLUMNS
    assert (first["output"], first["status"], first["custom_id"]) == ({"é": 1}, "succeeded", None)
    assert (second["output"], second["status"], second["error"]) == (None, "failed", "x")
    assert '"output":{"é":1}' in out.getvalue()


def test_a_path_gets_utf8_with_lf_and_the_directory_nothing_else(tmp_path):
    path = tmp_path / "out.csv"
    assert write_results([result_of(output="é\n")], path, format="csv") == 1
    assert path.read_bytes() == f'{HEADER},b1-0,succeeded,"é\n",,smollm2-135m,12,7,1,,\n'.encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_replaced_keeps_its_old_content_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("old")

    def results():
        yield result_of()
        assert path.read_text() == "old"
        yield result_of()

    write_results(results(), path, format="csv")
    assert len(path.read_text().splitlines()) == 3


def test_a_failure_in_the_middle_leaves_the_old_file_and_no_trace(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("old")

    def results():
        yield result_of()
        raise RuntimeError("the store is away")

    with pytest.raises(RuntimeError, match="the store is away"):
        write_results(results(), path, format="csv")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path):
    target, link = tmp_path / "real.csv", tmp_path / "link.csv"
    target.write_text("old")
    link.symlink_to(target)
    write_results([], link, format="csv")
    assert link.is_symlink()
    assert target.read_text() == HEADER


def test_a_new_file_has_the_permissions_that_the_umask_leaves(tmp_path):
    path = tmp_path / "out.csv"
    before = os.umask(0o027)
    try:
        write_results([], path, format="csv")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_half_a_surrogate_pair_in_a_reply_does_not_cost_the_file(tmp_path):
    path = tmp_path / "out.jsonl"
    write_results([result_of(output="a\ud83d")], path, format="jsonl")
    assert json.loads(path.read_text(encoding="utf-8"))["output"] == "a\ud83d"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(path.read_text()))
    reader.start()
    write_results([], path, format="csv")
    reader.join(timeout=30)
    assert got == [HEADER]
    assert path.is_fifo()


def test_a_missing_directory_is_named(tmp_path):
    path = tmp_path / "nowhere" / "out.csv"
    with pytest.raises(InputError) as caught:
        write_results([], path, format="csv")
    assert str(caught.value) == (f"{path}: there is no directory {tmp_path}/nowhere; create it, or choose another path")


def test_a_directory_as_the_file_is_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        write_results([], tmp_path, format="csv")
    assert str(caught.value) == f"{tmp_path}: is a directory; name a file in it"


def test_a_place_that_cannot_be_written_is_refused_before_a_result_is_asked_for(tmp_path):
    (tmp_path / "file").write_text("no directory")
    path = tmp_path / "file" / "out.csv"
    with pytest.raises(InputError) as caught:
        write_results(iter(pytest.fail, None), path, format="csv")
    assert str(caught.value) == (
        f"{path}: cannot be written: Not a directory; choose another path, or mend what is in the way"
    )
