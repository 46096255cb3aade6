"""The download of a batch's results, piece by piece."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime

from producer.gateway.access import Caller
from producer.gateway.dialects.own.batch_results import _texts
from schemas.outcome import Status
from schemas.result import JobResult

CALLER = Caller(key_id="k", workspace="acme", scopes=frozenset(), assistants=None, rpm=None)


def result(number: int, workspace: str = "acme") -> JobResult:
    return JobResult(
        job_id=f"b.{number}",
        row=number,
        status=Status.SUCCEEDED,
        output=f"line {number}\nmore",
        assistant=f"{workspace}/p/a",
        finished_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def test_the_pieces_are_one_table_with_one_header_and_hold_few_results_each() -> None:
    pieces = list(_texts(map(result, range(1200)), CALLER, "csv"))
    assert len(pieces) == 3
    assert [row["job_id"] for row in csv.DictReader(io.StringIO("".join(pieces)))] == [f"b.{n}" for n in range(1200)]
    lines = "".join(_texts(map(result, range(1200)), CALLER, "jsonl")).splitlines()
    assert [json.loads(line)["job_id"] for line in lines] == [f"b.{n}" for n in range(1200)]


def test_what_is_of_another_workspace_is_left_out_and_no_result_is_a_header_alone() -> None:
    assert list(_texts(iter([result(0, "other")]), CALLER, "csv")) == list(_texts(iter(()), CALLER, "csv"))
    assert next(_texts(iter(()), CALLER, "csv")).startswith("custom_id,job_id,status,output")
