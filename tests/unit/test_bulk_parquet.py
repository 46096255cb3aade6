"""Parquet files: rows in, results out."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from producer.bulk.lines import FIELD_MAX_BYTES
from producer.bulk.results import COLUMNS, write_results
from producer.bulk.rows import BadRow, check, read_rows, refusal
from producer.written_job import WrittenJob
from schemas import AssistantConfig, InputError, InvokeJob, JobResult, Message, Status
from schemas.outcome import Code

ADDRESS = "demo/reviews/sentiment"
Written = Callable[..., Path]


def assistant_of(*contents: str, **parts: Any) -> AssistantConfig:
    template = [{"role": "user", "content": content} for content in contents]
    return AssistantConfig.model_validate(
        {"assistant": ADDRESS, "instructions": "Label.", "template": template, **parts}
    )


REVIEWS = assistant_of("Review: {{ review }}")
ANY = assistant_of("Hello.")


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(columns: dict[str, Any] | pa.Table, **options: Any) -> Path:
        path = tmp_path / "in.parquet"
        pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
        return path

    return write


def jobs_of(path: Path, assistant: AssistantConfig = ANY) -> list[InvokeJob]:
    entries = list(read_rows(path, assistant))
    assert all(isinstance(entry, WrittenJob) for entry in entries), entries
    return [entry.job for entry in entries]


def problems_of(path: Path, assistant: AssistantConfig = ANY) -> list[str]:
    bad = [entry for entry in read_rows(path, assistant) if isinstance(entry, BadRow)]
    return [str(entry.problem).replace(f"{path.parent}/", "") for entry in bad]


def refusal_of(path: Path, assistant: AssistantConfig = ANY) -> str:
    with pytest.raises(InputError) as caught:
        list(read_rows(path, assistant))
    return str(caught.value).replace(f"{path.parent}/", "")


class TestRows:
    def test_a_column_is_the_variable_of_its_name_except_the_four_special_ones(self, written: Written) -> None:
        path = written(
            {
                "custom_id": [5],
                "thread_id": ["t1"],
                "message": ["Be brief."],
                "metadata": [{"source": "web", "n": 2, "none": None}],
                "review": ["Good."],
            }
        )
        assert jobs_of(path, REVIEWS) == [
            InvokeJob(
                assistant=ADDRESS,
                custom_id="5",
                thread_id="t1",
                messages=(Message(role="user", content="Be brief."),),
                metadata={"source": "web", "n": 2},
                variables={"review": "Good."},
            )
        ]

    @pytest.mark.parametrize(
        ("values", "kind", "variable"),
        [
            ([True], None, True),
            ([2**63 - 1], None, 2**63 - 1),
            ([0.5], None, 0.5),
            (["é"], pa.large_string(), "é"),
            (["é"], pa.dictionary(pa.int8(), pa.string()), "é"),
            ([["a", None]], None, ["a", None]),
            ([{"text": "a", "none": None, "in": [{"n": 1}]}], None, {"text": "a", "in": [{"n": 1}]}),
            ([[("a", 1)]], pa.map_(pa.string(), pa.int64()), {"a": 1}),
            ([date(2026, 11, 21)], None, "2026-11-21"),
            ([time(12, 30)], None, "12:30:00"),
            ([1_700_000_000_000], pa.timestamp("ms"), "2023-11-14T22:13:20"),
            (
                [datetime(2026, 11, 21, 12, tzinfo=timezone(timedelta(hours=1)))],
                pa.timestamp("us", tz="+01:00"),
                "2026-11-21T11:00:00+00:00",
            ),
            ([1_700_000_000_000_000_001], pa.timestamp("ns"), "2023-11-14T22:13:20"),
            ([[datetime(2026, 11, 21, 12, tzinfo=UTC)]], None, ["2026-11-21T12:00:00+00:00"]),
            ([Decimal("12.50")], None, "12.50"),
        ],
    )
    def test_values_are_those_of_json(self, written: Written, values: Any, kind: Any, variable: Any) -> None:
        (job,) = jobs_of(written({"x": pa.array(values, type=kind)}))
        assert job.variables == {"x": variable}
        assert type(job.variables["x"]) is type(variable)

    def test_null_is_a_variable_that_is_missing(self, written: Written) -> None:
        path = written({"custom_id": ["a", "b"], "review": ["Good.", None]})
        (problem,) = problems_of(path, REVIEWS)
        assert problem == (
            "in.parquet, row 2, column 'review': variable 'review', which the template needs, is missing; "
            "add 'review' to the row, or set `strict_variables: false` in the assistant"
        )
        (_, bad) = read_rows(path, REVIEWS)
        assert isinstance(bad, BadRow)
        assert (bad.row, bad.line, bad.code, bad.job.custom_id) == (1, 2, Code.MISSING_VARIABLE, "b")

    @pytest.mark.parametrize(
        ("values", "kind", "what"),
        [
            ([1.5, float("nan"), None], None, "nan is no JSON value"),
            (["a", b"\xff", None], pa.binary(), "a value of type bytes is no JSON value"),
            ([None, timedelta(1), None], None, "a value of type timedelta is no JSON value"),
            ([{"a": 1.0}, {"a": float("inf")}, None], None, "inf is no JSON value"),
            ([[("a", 1)], [("a", 1), ("a", 2)], None], pa.map_(pa.string(), pa.int64()), "the value cannot be read: "),
            ([[], [(1, 1)], None], pa.map_(pa.int64(), pa.int64()), "a map has keys that are no text"),
            ([0, 10**15, None], pa.timestamp("ms"), "the value cannot be read: "),
        ],
    )
    def test_what_json_has_not_makes_a_bad_row_that_names_the_column(
        self, written: Written, values: Any, kind: Any, what: str
    ) -> None:
        told = problems_of(written({"custom_id": ["a", "b", "c"], "x": pa.array(values, type=kind)}))
        if kind == pa.binary():
            assert len(told) == 2
            told = told[1:]
        (problem,) = told
        assert problem.startswith(f"in.parquet, row 2, column 'x': {what}")

    def test_a_field_that_is_too_large_is_named_and_others_of_its_row_group_are_not(self, written: Written) -> None:
        rows = ["x" * FIELD_MAX_BYTES, "y" * (FIELD_MAX_BYTES + 1), "z"]
        assert problems_of(written({"x": rows})) == [
            "in.parquet, row 2, column 'x': the field is larger than 1,048,576 bytes; shorten it to 1,048,576 bytes"
        ]

    def test_a_custom_id_that_stands_twice_is_told_with_both_rows(self, written: Written) -> None:
        (problem,) = problems_of(written({"custom_id": ["a", "b", "a"]}))
        assert problem == (
            "in.parquet, row 3, column 'custom_id': 'a' stands in row 1 too; give each row an id of its own"
        )

    def test_rows_are_counted_through_row_groups(self, written: Written) -> None:
        path = written({"n": list(range(1000)), "x": [1.0] * 900 + [float("nan")] + [1.0] * 99}, row_group_size=70)
        entries = list(read_rows(path, ANY))
        assert [entry.job.variables.get("n") for entry in entries if isinstance(entry, WrittenJob)] == [
            number for number in range(1000) if number != 900
        ]
        checked = check(path, ANY)
        assert (checked.rows, checked.bad_total) == (1000, 1)
        assert f"{path}, row 901, column 'x': nan is no JSON value" in str(refusal(checked))

    def test_a_row_group_of_any_size_is_read_in_little_memory(self, written: Written) -> None:
        # Some 400 MB of text in one row group, which the dictionary makes a small file.
        texts = [f"{number} " * 25_000 for number in range(10)]
        column = pa.DictionaryArray.from_arrays([number % 10 for number in range(8_000)], texts)
        path = written({"x": column}, store_schema=False)
        assert pq.read_metadata(path).num_row_groups == 1
        before = pa.total_allocated_bytes()
        most = 0
        for entry in read_rows(path, ANY):
            assert isinstance(entry, WrittenJob)
            most = max(most, pa.total_allocated_bytes() - before)
        assert most < 64 * 1_048_576


class TestFiles:
    def test_a_file_that_is_empty(self, tmp_path: Path) -> None:
        path = tmp_path / "in.parquet"
        path.touch()
        assert refusal_of(path) == ("in.parquet: is empty; write the file again, whole, with a library such as pyarrow")

    def test_a_file_that_is_something_else(self, tmp_path: Path) -> None:
        path = tmp_path / "in.parquet"
        path.write_text("custom_id,review\nr1,Good.\n")
        assert refusal_of(path).startswith("in.parquet: is no whole Parquet file: ")

    def test_a_file_that_was_cut_off(self, written: Written) -> None:
        path = written({"review": ["Good."] * 1000})
        path.write_bytes(path.read_bytes()[:-50])
        assert refusal_of(path).startswith("in.parquet: is no whole Parquet file: ")

    def test_a_file_with_a_page_that_was_overwritten_is_one_error_and_no_row_of_it_is_enqueued(
        self, written: Written
    ) -> None:
        path = written({"review": [str(number) for number in range(5_000)]}, row_group_size=1_000, use_dictionary=False)
        content = bytearray(path.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 400] = b"\xff" * 400
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"in\.parquet: cannot be read beyond row \d+: "):
            check(path, REVIEWS)

    def test_a_file_without_rows_or_without_columns(self, written: Written) -> None:
        assert refusal_of(written({"x": pa.array([], pa.string())})) == (
            "in.parquet: has no rows; write at least one row"
        )
        assert refusal_of(written({})) == "in.parquet: has no columns; write a column for each variable"

    def test_two_columns_of_one_name(self, written: Written) -> None:
        table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
        assert refusal_of(written(table)) == "in.parquet, column 'x': two columns have this name; rename one of them"

    def test_a_column_that_every_row_needs_and_that_is_not_there(self, written: Written) -> None:
        assert refusal_of(written({"text": ["a"]}), REVIEWS) == (
            "in.parquet, column 'review': there is no such column, and the template needs it; the file has 'text'; "
            "add the column, or rename the one that holds it"
        )

    def test_without_the_library_one_error_says_how_to_get_it(self, written: Written) -> None:
        path = written({"review": ["Good."]})
        code = (
            "import sys; sys.modules['pyarrow'] = None\n"
            "from pathlib import Path\n"
            "from producer.bulk.rows import read_rows\n"
            "from producer.bulk.results import write_results\n"
            "from schemas import AssistantConfig, InputError\n"
            "config = AssistantConfig.model_validate({'assistant': 'a/b/c', 'instructions': 'Label.'})\n"
            "path = Path(sys.argv[1])\n"
            "for work in (lambda: list(read_rows(path, config)), lambda: write_results([], path, format='parquet')):\n"
            "    try:\n"
            "        work()\n"
            "    except InputError as exc:\n"
            "        print(exc)\n"
        )
        told = subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True).stdout
        assert [line.rpartition("; ")[2] for line in told.splitlines()] == ["pip install 'assistq[parquet]'"] * 2
        assert told.count(f"{path}: Parquet needs pyarrow") == 2


def result_of(**parts: Any) -> JobResult:
    known = {
        "job_id": "b1-0",
        "status": Status.SUCCEEDED,
        "assistant": ADDRESS,
        "prompt_tokens": 12,
        "completion_tokens": 7,
        "attempts": 1,
        "finished_at": datetime(2026, 11, 21, tzinfo=UTC),
    }
    return JobResult.model_validate(known | parts)


class TestResults:
    def test_text_stands_as_it_is_other_outputs_as_json_and_none_is_null(self, tmp_path: Path) -> None:
        path = tmp_path / "out.parquet"
        outputs = ["=1+1", {"café": [1, None]}, None, False, "half \ud83d"]
        assert write_results((result_of(output=each) for each in outputs), path, format="parquet") == len(outputs)
        table = pq.read_table(path)
        assert tuple(table.column_names) == COLUMNS
        assert table.column("output").to_pylist() == ["=1+1", '{"café":[1,null]}', None, "false", "half \\ud83d"]
        numbers = [name for name in table.column_names if table.schema.field(name).type == pa.int64()]
        assert numbers == ["prompt_tokens", "completion_tokens", "attempts"]
        assert table.column("custom_id").to_pylist() == [None] * len(outputs)

    def test_few_results_are_in_memory_at_once(self, tmp_path: Path) -> None:
        rows, most = 60_000, 0
        before = pa.total_allocated_bytes()

        def results() -> Iterator[JobResult]:
            nonlocal most
            for number in range(rows):
                most = max(most, pa.total_allocated_bytes() - before)
                yield result_of(job_id=str(number), output=f"{number} " * 200)

        path = tmp_path / "out.parquet"
        assert write_results(results(), path, format="parquet") == rows
        file = pq.ParquetFile(path)
        assert file.metadata.num_rows == rows
        assert file.metadata.num_row_groups > 1
        assert most < 40 * 1_048_576

    def test_a_failure_in_the_middle_leaves_the_old_file_and_no_trace(self, tmp_path: Path) -> None:
        path = tmp_path / "out.parquet"
        path.write_text("old")

        def results() -> Iterator[JobResult]:
            yield result_of()
            raise RuntimeError("the store is away")

        with pytest.raises(RuntimeError, match="the store is away"):
            write_results(results(), path, format="parquet")
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_batch_without_results_is_a_file_without_rows(self) -> None:
        out = io.BytesIO()
        assert write_results([], out, format="parquet") == 0
        assert pq.read_table(io.BytesIO(out.getvalue())).num_rows == 0

    def test_what_is_written_can_be_read_as_rows(self, tmp_path: Path) -> None:
        path = tmp_path / "out.parquet"
        write_results([result_of(custom_id="r1", output={"a": 1})], path, format="parquet")
        (job,) = jobs_of(path)
        assert job.custom_id == "r1"
        assert json.loads(job.variables["output"]) == {"a": 1}
