from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from producer.bulk import csv_rows
from producer.bulk.lines import FIELD_MAX_BYTES, ROW_MAX_BYTES
from producer.bulk.rows import BAD_ROWS_KEPT, BadRow, check, fingerprint, read_rows, refusal
from producer.entries import batch_entry
from producer.written_job import WrittenJob
from schemas import AssistantConfig, InputError, InvokeJob, JobRecord, Message
from schemas.outcome import Code

ADDRESS = "demo/reviews/sentiment"
MIB = 1_048_576


def assistant_of(*contents: str, **parts: Any) -> AssistantConfig:
    template = [{"role": "user", "content": content} for content in contents]
    return AssistantConfig.model_validate(
        {"assistant": ADDRESS, "instructions": "Label.", "template": template, **parts}
    )


REVIEWS = assistant_of("Review: {{ review }}")
CHAT = assistant_of()


@pytest.fixture
def written(tmp_path):
    def write(content: str | bytes, *, name: str = "in.csv") -> Path:
        path = Path(tmp_path, name)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def jobs_of(path: Path, assistant: AssistantConfig = REVIEWS, **pinned: Any) -> list[InvokeJob]:
    entries = list(read_rows(path, assistant, **pinned))
    assert not [entry for entry in entries if isinstance(entry, BadRow)]
    return [entry.job for entry in entries]


def bad_of(path: Path, assistant: AssistantConfig = REVIEWS) -> list[BadRow]:
    return [entry for entry in read_rows(path, assistant) if isinstance(entry, BadRow)]


def problem_of(path: Path, assistant: AssistantConfig = REVIEWS) -> str:
    """Return the text of the file's only bad row, without the directory."""
    (bad,) = bad_of(path, assistant)
    return str(bad.problem).replace(f"{path.parent}/", "")


def refusal_of(path: Path, assistant: AssistantConfig = REVIEWS) -> str:
    """Return the text of the error that refuses the whole file, without the directory."""
    with pytest.raises(InputError) as caught:
        list(read_rows(path, assistant))
    return str(caught.value).replace(f"{path.parent}/", "")


class TestJobs:
    def test_a_column_is_the_variable_of_its_name_except_the_four_special_ones(self, written):
        path = written(
            "custom_id,thread_id,message,metadata,review,label\n"
            'r1,t1,Be brief.,"{""source"": ""web"", ""n"": 2}",Good.,positive\n'
        )
        assert jobs_of(path) == [
            InvokeJob(
                assistant=ADDRESS,
                custom_id="r1",
                thread_id="t1",
                messages=(Message(role="user", content="Be brief."),),
                metadata={"source": "web", "n": 2},
                variables={"review": "Good.", "label": "positive"},
            )
        ]

    def test_empty_special_fields_are_none_and_an_empty_variable_is_empty_text(self, written):
        (job,) = jobs_of(written("custom_id,thread_id,message,metadata,review\n,,,,\n"))
        assert job == InvokeJob(assistant=ADDRESS, variables={"review": ""})

    def test_jobs_carry_the_environment_and_the_pinned_version_and_no_id(self, written):
        (job,) = jobs_of(written("review\nGood.\n"), assistant_of("{{ review }}", environment="staging"), version=7)
        assert (job.environment, job.version, job.id) == ("staging", 7, None)

    def test_a_jsonl_row_keeps_the_types_of_its_variables(self, written):
        line = '{"custom_id": 5, "review": {"text": ["é", 1, null, true]}, "metadata": {"ok": true}, "message": null}'
        (job,) = jobs_of(written(line + "\n", name="in.jsonl"))
        assert job == InvokeJob(
            assistant=ADDRESS,
            custom_id="5",
            variables={"review": {"text": ["é", 1, None, True]}},
            metadata={"ok": True},
        )
        assert job.metadata["ok"] is True

    def test_jsonl_metadata_may_be_json_text(self, written):
        (job,) = jobs_of(written('{"review": "x", "metadata": "{\\"a\\": 1}"}', name="in.NDJSON"))
        assert job.metadata == {"a": 1}

    @pytest.mark.parametrize(("name", "text"), [("in.csv", "review\nGood.\n"), ("in.jsonl", '{"review": "Good."}\n')])
    def test_a_byte_order_mark_is_dropped(self, written, name, text):
        (job,) = jobs_of(written(b"\xef\xbb\xbf" + text.encode(), name=name))
        assert job.variables == {"review": "Good."}

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("in.csv", "\n\nreview,label\n\nA,\n  \n\r\nB,\n\n"),
            ("in.jsonl", '\n{"review": "A"}\n  \n\n{"review": "B"}'),
        ],
    )
    def test_blank_lines_are_skipped(self, written, name, text):
        assert [job.variables["review"] for job in jobs_of(written(text, name=name))] == ["A", "B"]

    @pytest.mark.parametrize("delimiter", [";", "\t"])
    def test_a_semicolon_or_tab_separates_where_the_header_has_no_comma(self, written, delimiter):
        path = written(f"custom_id{delimiter}review\nr1{delimiter}Good, really.\n")
        (job,) = jobs_of(path)
        assert (job.custom_id, job.variables) == ("r1", {"review": "Good, really."})

    def test_a_comma_in_the_header_wins_over_other_delimiters(self, written):
        (job,) = jobs_of(written("review,a;b\nx,y;z\n"))
        assert job.variables == {"review": "x", "a;b": "y;z"}

    def test_spaces_round_header_names_are_dropped_and_in_fields_kept(self, written):
        (job,) = jobs_of(written("custom_id, review \nr1, Good. \n"))
        assert job.variables == {"review": " Good. "}

    def test_a_field_of_exactly_the_limit_is_taken(self, written):
        (job,) = jobs_of(written("review,label\n" + "é" * (FIELD_MAX_BYTES // 2) + ",x\n"))
        assert len(job.variables["review"].encode()) == FIELD_MAX_BYTES

    def test_a_lenient_assistant_takes_rows_without_its_variables(self, written):
        (job,) = jobs_of(written("other\nx\n"), assistant_of("{{ review }}", strict_variables=False))
        assert job.variables == {"other": "x"}

    def test_values_are_data_and_never_rendered(self, written):
        (job,) = jobs_of(written('review\n"{{ nobody }} {{#if"\n'))
        assert job.variables == {"review": "{{ nobody }} {{#if"}


class TestFilesThatAreRefused:
    def test_missing(self, tmp_path):
        assert refusal_of(tmp_path / "in.csv") == "in.csv: no such file; check the path"

    def test_a_directory(self, tmp_path):
        (tmp_path / "in.csv").mkdir()
        assert refusal_of(tmp_path / "in.csv") == "in.csv: is a directory; name a CSV, JSONL or Parquet file in it"

    @pytest.mark.parametrize("name", ["in.xlsx", "in"])
    def test_a_suffix_that_tells_no_format(self, written, name):
        suffix = name.removeprefix("in")
        assert refusal_of(written("review\nx\n", name=name)) == (
            f"{name}: cannot tell its format from the suffix '{suffix}'; "
            "name the file .csv (CSV with a header), .jsonl (one JSON object a line) or .parquet"
        )

    @pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
    def test_empty(self, written, text):
        assert refusal_of(written(text)) == "in.csv: is empty; write a header line and a line for each row"
        if "\ufeff" not in text:
            assert refusal_of(written(text, name="in.jsonl")) == (
                "in.jsonl: is empty; write a line with a JSON object for each row"
            )

    @pytest.mark.parametrize("text", ["custom_id,review", "custom_id,review\n\n\n"])
    def test_a_header_without_rows(self, written, text):
        assert refusal_of(written(text)) == "in.csv:1: has a header but no rows; add a line for each row"

    def test_no_header(self, written):
        assert refusal_of(written("r1,Great kettle.\nr2,It leaks.\n")) == (
            "in.csv:1: the first line looks like data, not like a header: none of its fields is a column that the "
            "assistant uses; write a first line that names the columns, such as `custom_id,review`"
        )

    def test_no_header_under_a_template_with_blocks(self, written):
        text = refusal_of(written("r1,Great kettle.\n"), assistant_of("{{#if review}}{{ review }}{{/if}}"))
        assert text.startswith("in.csv:1: the first line looks like data")

    def test_no_header_for_an_assistant_without_template(self, written):
        assert refusal_of(written("Hello there!\n"), CHAT).endswith("such as `custom_id,message`")

    def test_a_header_cell_without_a_name(self, written):
        assert refusal_of(written("\ncustom_id,,review\nr1,x,y\n")) == (
            "in.csv:2, column '2': the header's column 2 has no name; "
            "name every column in the first line, as in `custom_id,review`"
        )

    def test_two_columns_of_one_name(self, written):
        assert refusal_of(written("review,label, review\na,b,c\n")) == (
            "in.csv:1, column 'review': the header names column 'review' twice; give each column a name of its own"
        )

    def test_a_column_that_the_template_needs_is_missing(self, written):
        assert refusal_of(written("custom_id,text\nr1,x\n")) == (
            "in.csv:1, column 'review': there is no such column, and the template needs it; "
            "the header has 'custom_id', 'text'; add the column, or rename the one that holds it"
        )

    def test_a_column_that_the_instructions_need_is_missing(self, written):
        text = refusal_of(written("review\nx\n"), assistant_of("{{ review }}", instructions="In {{ language }}."))
        assert text.startswith("in.csv:1, column 'language': there is no such column")

    def test_a_message_column_is_missing_for_an_assistant_without_template(self, written):
        assert refusal_of(written("custom_id,text\nr1,x\n"), CHAT) == (
            "in.csv:1, column 'message': there is no such column, and the assistant has no template; "
            "the header has 'custom_id', 'text'; add the column, or rename the one that holds it"
        )

    def test_bytes_that_are_not_utf8(self, written):
        path = written("custom_id,review\nr1,fine\nr2,caf\xe9\n".encode("latin-1"))
        assert refusal_of(path) == (
            "in.csv:3, column 'review': not UTF-8: byte 0xe9 at offset 31 of the file, byte 7 of the line; "
            "convert the file, for example with `iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW`"
        )
        assert path.read_bytes()[31] == 0xE9

    def test_utf16(self, written):
        assert refusal_of(written("review\nx\n".encode("utf-16"))) == (
            "in.csv:1: not UTF-8, but UTF-16: byte 0xff at offset 0 of the file, byte 1 of the line; "
            "convert the file, for example with `iconv -f UTF-16 -t UTF-8 FILE > NEW`"
        )

    def test_bytes_that_are_not_utf8_in_jsonl(self, written):
        path = written(b'{"review": "x"}\n{"custom_id": "a", "review": "caf\xe9"}\n', name="in.jsonl")
        assert refusal_of(path).startswith("in.jsonl:2, column 'review': not UTF-8: byte 0xe9 at offset 49 of the file")

    def test_a_nul_byte(self, written):
        assert refusal_of(written(b'custom_id,review\nr1,"two\nlines\0"\n')) == (
            "in.csv:3, column 'review': a NUL byte at offset 30 of the file, byte 6 of the line; "
            "save the file as UTF-8 text, or remove NUL bytes with `tr -d '\\000' < FILE > NEW`"
        )

    def test_lines_that_end_in_a_carriage_return_alone(self, written):
        assert refusal_of(written("review\rGood.\rBad.\r")) == (
            "in.csv:1: lines end in a carriage return alone; save the file with LF or CRLF line ends"
        )

    def test_a_first_line_without_end(self, written):
        assert refusal_of(written("x" * (ROW_MAX_BYTES + 10))) == (
            "in.csv:1: the first line has no end; begin with a line that names the columns"
        )

    def test_a_quote_in_the_header_that_is_not_closed(self, written):
        text = refusal_of(written('custom_id,"review\nr1,x\n'))
        assert text.startswith("in.csv:1: the header is not CSV: ")
        assert text.endswith("; name the columns, as in `custom_id,review`")

    def test_a_json_array(self, written):
        assert refusal_of(written('[{"review": "x"}]', name="in.jsonl")) == (
            "in.jsonl:1: begins with `[`: one JSON array is not JSON Lines; "
            "write one object a line, for example with `jq -c '.[]' FILE > NEW.jsonl`"
        )

    def test_an_unreadable_file(self, tmp_path):
        path = tmp_path / "in.csv"
        path.symlink_to(path)
        assert refusal_of(path) == (
            "in.csv: cannot be read: Too many levels of symbolic links; check the path and its permissions"
        )

    def test_a_template_that_cannot_be_rendered(self, written):
        assert refusal_of(written("review\nx\n"), assistant_of("{{ shout review }}")) == (
            'the template of demo/reviews/sentiment cannot be rendered: Missing helper: "shout"; '
            "mend the template of the assistant"
        )


class TestBadRowsOfCsv:
    @pytest.mark.parametrize(
        ("row", "problem"),
        [
            (
                "r2",
                "in.csv:3, column 'review': 1 field, but the header has 3; add the missing fields, empty if need be",
            ),
            (
                "r2,x",
                "in.csv:3, column 'label': 2 fields, but the header has 3; add the missing fields, empty if need be",
            ),
            (
                "r2,Well, no,x",
                "in.csv:3, column '4': 4 fields, but the header has 3; put a field that holds `,` in quotes",
            ),
        ],
    )
    def test_a_ragged_row_says_how_many_fields_it_has(self, written, row, problem):
        path = written(f"custom_id,review,label\nr1,a,b\n{row}\nr3,c,d\n")
        assert problem_of(path) == problem
        (bad,) = bad_of(path)
        assert (bad.row, bad.line, bad.code, bad.job.custom_id) == (1, 3, Code.BAD_ROW, "r2")

    def test_a_custom_id_that_stands_twice_names_both_lines(self, written):
        path = written('custom_id,review\nr1,"two\nlines"\nr2,b\nr1,c\n')
        assert problem_of(path) == (
            "in.csv:5, column 'custom_id': 'r1' stands in line 2 too; give each row an id of its own"
        )

    def test_a_custom_id_that_is_too_long(self, written):
        assert problem_of(written(f"custom_id,review\n{'x' * 513},a\n")) == (
            "in.csv:2, column 'custom_id': the id has 513 characters; shorten it to 512"
        )

    def test_a_thread_id_of_other_characters(self, written):
        assert problem_of(written("thread_id,review\nt 1,a\n")) == (
            "in.csv:2, column 'thread_id': 't 1' cannot be an id; "
            "use letters, digits and . _ : @ -, at most 200, beginning with a letter or digit"
        )

    @pytest.mark.parametrize(
        ("metadata", "what", "mend"),
        [
            (
                "{a: 1}",
                "not valid JSON: Expecting property name enclosed in double quotes, at character 2",
                "write a JSON",
            ),
            (
                '{"a": 1,\n"b" 2}',
                "not valid JSON: Expecting ':' delimiter, at line 2, character 5 of it",
                "write a JSON",
            ),
            ('{"a": NaN}', "not valid JSON: NaN is no JSON value", "write a JSON"),
            ('{"a": 1e999}', "not valid JSON: the number 1e999 is too large", "write a JSON"),
            ('{"a": ' + "1" * 5000 + "}", "not valid JSON: Exceeds the limit (4300 digits)", "write a JSON"),
            ('{"a": "\\ud800"}', "not valid JSON: half of a surrogate pair", "write a JSON"),
            ("[" * 100_000, "not valid JSON: nested too deeply", "write a JSON"),
            ("[1]", "must be a JSON object, not an array", "write a JSON object"),
            ("7", "must be a JSON object, not a number", "write a JSON object"),
            ('{"a": null}', "the value of 'a' is null", "use text, a number, true or false"),
            ('{"a": [1]}', "the value of 'a' is an array", "use text, a number, true or false"),
            ('{"' + "k" * 65 + '": 1}', f"key '{'k' * 65}' has 65 characters", "keep keys to 1 to 64 characters"),
            ('{"": 1}', "key '' has 0 characters", "keep keys to 1 to 64 characters"),
        ],
    )
    def test_metadata_that_cannot_be_taken(self, written, metadata, what, mend):
        text = io.StringIO()
        csv.writer(text).writerows([["review", "metadata"], ["x", ""], ["y", metadata]])
        (bad,) = bad_of(written(text.getvalue()))
        assert (bad.line, bad.column) == (3, "metadata")
        assert bad.what.startswith(what)
        assert bad.mend.startswith(mend)

    def test_a_row_that_a_block_needs_a_variable_of(self, written):
        assistant = assistant_of("{{#if formal}}Dear {{ name }}{{/if}} {{ review }}")
        path = written("formal,review\n,fine\nyes,not\n")
        assert problem_of(path, assistant) == (
            "in.csv:3, column 'name': variable 'name', which the template needs, is missing; "
            "add 'name' to the row, or set `strict_variables: false` in the assistant"
        )
        assert bad_of(path, assistant)[0].code is Code.MISSING_VARIABLE

    def test_a_row_without_message_for_an_assistant_without_template(self, written):
        path = written("custom_id,message\nr1,Hi\nr2,\n")
        assert problem_of(path, CHAT) == (
            "in.csv:3, column 'message': the assistant has no template and the row no message: there is nothing to "
            "send; write the message, or give the assistant a template"
        )
        assert bad_of(path, CHAT)[0].code is Code.NOTHING_TO_SEND

    def test_text_after_a_closing_quote(self, written):
        path = written('custom_id,review\nr1,"He said "hi" to me"\nr2,fine\n')
        assert problem_of(path) == (
            "in.csv:2, column 'review': text follows a closing quote; "
            'close the quote, and write a quote inside a quoted field twice ("")'
        )

    def test_a_quote_that_the_quote_of_a_later_row_closes(self, written):
        path = written('custom_id,review\nr1,"never closed\nr2,"fine"\nr3,good\n')
        assert problem_of(path) == (
            "in.csv:2, column 'review': text follows a closing quote in line 3; "
            'close the quote, and write a quote inside a quoted field twice ("")'
        )

    def test_a_quote_that_is_never_closed_names_the_line_where_its_row_began(self, written):
        path = written('custom_id,review\nr1,fine\nr2,"open\nr3,x\nr4,y\n')
        assert problem_of(path) == (
            "in.csv:3, column 'review': a quote opens and is never closed: all up to the end of the file, "
            'line 5, belongs to this row; close the quote, and write a quote inside a quoted field twice ("")'
        )

    def test_a_carriage_return_outside_quotes(self, written):
        assert problem_of(written("review,label\na\rb,c\nd,e\n")) == (
            "in.csv:2: a carriage return stands outside quotes; remove it, or put its field in quotes"
        )

    @pytest.mark.parametrize("size_bytes", [FIELD_MAX_BYTES + 1, 20 * MIB])
    @pytest.mark.parametrize("quoted", [False, True])
    def test_a_field_that_is_too_large_names_its_line_and_column_and_the_next_rows_are_read(
        self, written, size_bytes, quoted
    ):
        quote = '"' if quoted else ""
        path = written(f'review,"big",label\na,b,c\nd,{quote}{"x" * size_bytes}{quote},"f"\ng,h,i\n')
        assert problem_of(path) == (
            "in.csv:3, column 'big': the field is larger than 1,048,576 bytes; shorten it to 1,048,576 bytes"
        )
        entries = list(read_rows(path, REVIEWS))
        assert [isinstance(entry, BadRow) for entry in entries] == [False, True, False]
        assert entries[2].job.variables == {"review": "g", "big": "h", "label": "i"}

    def test_a_field_is_measured_in_bytes_not_characters(self, written):
        path = written("review,label\n" + "é" * (FIELD_MAX_BYTES // 2 + 1) + ",x\n")
        assert problem_of(path).startswith("in.csv:2, column 'review': the field is larger than 1,048,576 bytes")

    def test_a_large_quoted_field_of_many_lines_is_one_bad_row(self, written):
        path = written('custom_id,review\nr1,"' + 'He said ""no"".\n' * 200_000 + '"\nr2,fine\n')
        (bad, job) = list(read_rows(path, REVIEWS))
        assert isinstance(bad, BadRow)
        assert (bad.line, bad.column) == (2, "review")
        assert bad.what == "the field is larger than 1,048,576 bytes"
        assert isinstance(job, WrittenJob)
        assert job.job.custom_id == "r2"

    def test_a_quote_that_is_open_for_megabytes_to_the_end_is_said_to_be_open(self, written):
        path = written('custom_id,review\nr1,"open\n' + "rx,fine\n" * 200_000)
        assert problem_of(path).startswith(
            "in.csv:2, column 'review': a quote opens and is never closed: all up to the end of the file, line 200002,"
        )

    def test_a_quote_that_stays_open_beyond_all_measure_ends_the_reading(self, written, monkeypatch):
        monkeypatch.setattr(csv_rows, "OPEN_QUOTE_MAX_BYTES", 2 * MIB)
        path = written('custom_id,review\nr0,x\nr1,"open\n' + "rx,fine\n" * 800_000)
        assert refusal_of(path) == (
            "in.csv:3, column 'review': a quote opens and is not closed within 2,097,152 bytes; "
            'close the quote, and write a quote inside a quoted field twice ("")'
        )

    def test_a_row_of_many_fields_that_is_too_large_as_a_whole(self, written):
        row = ",".join("x" * 1_000_000 for _ in range(18))
        names = ",".join(f"c{number}" for number in range(17))
        path = written(f"review,{names}\n{row}\n{',' * 17}\n")
        assert problem_of(path) == "in.csv:2: the row is larger than 16,777,216 bytes; shorten its fields"

    def test_the_limit_that_an_application_set_for_the_csv_module_is_never_lowered(self, written):
        before = csv.field_size_limit(3 * MIB)
        try:
            assert problem_of(written("review\n" + "x" * (2 * MIB) + "\n")).startswith("in.csv:2, column 'review'")
            assert csv.field_size_limit() == 3 * MIB
        finally:
            csv.field_size_limit(before)


class TestBadRowsOfJsonl:
    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            (
                '{"review": "x"',
                (
                    "in.jsonl:2, column 'review': not valid JSON: Expecting ',' delimiter, at character 15; "
                    "write one JSON object a line"
                ),
            ),
            (
                '{"review": "x", "n": tru}',
                (
                    "in.jsonl:2, column 'n': not valid JSON: Expecting value, at character 22; "
                    "write one JSON object a line"
                ),
            ),
            ("42", "in.jsonl:2: a number instead of an object; write one JSON object a line"),
            ('"x"', "in.jsonl:2: text instead of an object; write one JSON object a line"),
            (
                '{"review": "\\ud83d"}',
                (
                    "in.jsonl:2, column 'review': not valid JSON: half of a surrogate pair (\\ud800 to \\udfff); "
                    "write one JSON object a line"
                ),
            ),
            (
                '{"text": "x"}',
                (
                    "in.jsonl:2, column 'review': variable 'review', which the template needs, is missing; "
                    "add 'review' to the row, or set `strict_variables: false` in the assistant"
                ),
            ),
            (
                '{"review": "x", "custom_id": true}',
                "in.jsonl:2, column 'custom_id': must be text, not true or false; write text",
            ),
            (
                '{"review": "x", "thread_id": [1]}',
                "in.jsonl:2, column 'thread_id': must be text, not an array; write text",
            ),
            ('{"review": "x", "message": 0}', "in.jsonl:2, column 'message': must be text, not a number; write text"),
            (
                '{"review": "x", "metadata": []}',
                "in.jsonl:2, column 'metadata': must be a JSON object, not an array; write a JSON object",
            ),
            (
                '{"review": "x", "custom_id": "first"}',
                "in.jsonl:2, column 'custom_id': 'first' stands in line 1 too; give each row an id of its own",
            ),
        ],
    )
    def test_a_row_that_cannot_be_taken_names_its_line_column_and_mend(self, written, line, problem):
        path = written('{"review": "a", "custom_id": "first"}\n' + line + '\n{"review": "b"}\n', name="in.jsonl")
        assert problem_of(path) == problem
        assert len(list(read_rows(path, REVIEWS))) == 3

    @pytest.mark.parametrize(("levels", "taken"), [(185, True), (195, False), (300, False), (100_000, False)])
    def test_a_value_that_is_nested_too_deeply_for_the_workers_to_read_is_refused(self, written, levels, taken):
        path = written('{"review": ' + "[" * levels + "]" * levels + "}\n", name="in.jsonl")
        if taken:
            (entry,) = read_rows(path, REVIEWS)
            assert isinstance(entry, WrittenJob)
            assert JobRecord.model_validate_json(batch_entry(entry, batch_id="b", row=0).record).job == entry.job
        else:
            assert "not valid JSON: nested too deeply" in problem_of(path)

    def test_a_whole_surrogate_pair_is_taken(self, written):
        (job,) = jobs_of(written('{"review": "\\ud83d\\ude00"}', name="in.jsonl"))
        assert job.variables == {"review": "😀"}

    @pytest.mark.parametrize("size_bytes", [FIELD_MAX_BYTES + 1, 20 * MIB])
    def test_a_field_that_is_too_large_names_its_line_and_column(self, written, size_bytes):
        rows = [{"review": "a"}, {"custom_id": "r2", "review": "x" * size_bytes, "label": "y"}, {"review": "b"}]
        path = written("\n".join(json.dumps(row) for row in rows), name="in.jsonl")
        assert problem_of(path) == (
            "in.jsonl:2, column 'review': the field is larger than 1,048,576 bytes; shorten it to 1,048,576 bytes"
        )
        assert len(list(read_rows(path, REVIEWS))) == 3

    def test_a_nested_value_that_is_missing_names_its_path(self, written):
        path = written('{"user": {"name": "Ada"}}\n{"user": {}}\n', name="in.jsonl")
        assert problem_of(path, assistant_of("Hi {{ user.name }}")) == (
            "in.jsonl:2, column 'user': variable 'user.name', which the template needs, is missing; "
            "add 'user.name' to the row, or set `strict_variables: false` in the assistant"
        )


class TestCheckAndRefusal:
    def test_a_check_counts_all_rows_and_keeps_the_first_bad_ones(self, written):
        bad = "\n".join(f"b{number}" for number in range(BAD_ROWS_KEPT + 5))
        checked = check(written(f"custom_id,review\nr1,x\n{bad}\n"), REVIEWS)
        assert (checked.rows, checked.bad_total, len(checked.bad)) == (
            BAD_ROWS_KEPT + 6,
            BAD_ROWS_KEPT + 5,
            BAD_ROWS_KEPT,
        )
        assert [row.row for row in checked.bad[:3]] == [1, 2, 3]

    def test_a_refusal_lists_ten_problems_and_what_can_be_done(self, written):
        bad = "\n".join(f"b{number}" for number in range(12))
        path = written(f"custom_id,review\nr1,x\n{bad}\nr2,y\n")
        lines = str(refusal(check(path, REVIEWS))).splitlines()
        assert lines[:10] == [
            f"{path}:{number}, column 'review': 1 field, but the header has 2; add the missing fields, empty if need be"
            for number in range(3, 13)
        ]
        assert lines[10:] == [
            "… and 2 more bad rows",
            "nothing was enqueued; mend the file, or pass --skip-bad-rows to run the other 2 rows",
        ]

    def test_a_refusal_of_a_file_without_a_good_row_does_not_offer_to_skip(self, written):
        text = str(refusal(check(written("custom_id,review\nr1\n"), REVIEWS)))
        assert text.endswith("\nnothing was enqueued; mend the file")

    def test_a_bad_row_carries_what_stands_in_for_it_in_the_results(self, written):
        (bad,) = bad_of(written("custom_id,thread_id,review\nr1,t 1,x\n"))
        assert bad.job == InvokeJob(assistant=ADDRESS, custom_id="r1")
        assert bad.rejection.code == "bad_row"
        assert bad.rejection.error == str(bad.problem)

    def test_a_pipe_is_refused_because_it_is_read_twice(self, tmp_path):
        path = tmp_path / "in.csv"
        os.mkfifo(path)
        with pytest.raises(InputError, match=r"in\.csv: is no regular file, and it is read twice; save it to a file"):
            check(path, REVIEWS)

    def test_the_fingerprint_is_the_sha256_of_the_bytes(self, written):
        content = b"review\n" + b"x" * 3 * MIB
        assert fingerprint(written(content)) == hashlib.sha256(content).hexdigest()
        with pytest.raises(InputError, match="no such file"):
            fingerprint(Path("/nonexistent/in.csv"))


def read_a_few_of_many(path: Path, *, head: bytes, row: bytes) -> int:
    """Read three rows of a pipe that would go on for 64 MiB; return how many bytes had to be written."""
    os.mkfifo(path)
    written_bytes = 0

    def write() -> None:
        nonlocal written_bytes
        with path.open("wb", buffering=0) as stream:
            stream.write(head)
            try:
                for _ in range(64 * 16):
                    written_bytes += stream.write(row * (MIB // 16 // len(row)))
            except BrokenPipeError:
                return

    writer = threading.Thread(target=write)
    writer.start()
    entries = read_rows(path, REVIEWS)
    assert len(list(itertools.islice(entries, 3))) == 3
    entries.close()  # type: ignore[attr-defined] # a generator: leaving it closes the file
    writer.join(timeout=30)
    assert not writer.is_alive()
    return written_bytes


class TestLaziness:
    def test_rows_of_csv_are_read_only_as_far_as_asked(self, tmp_path):
        assert read_a_few_of_many(tmp_path / "in.csv", head=b"review\n", row=b'"some, text"\n') < MIB

    def test_rows_of_jsonl_are_read_only_as_far_as_asked(self, tmp_path):
        assert read_a_few_of_many(tmp_path / "in.jsonl", head=b"", row=b'{"review": "x"}\n') < MIB


# What UTF-8 text can hold, without NUL, which is refused.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=20), delimiter=st.sampled_from(",;\t"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_the_csv_module_writes_reads_back_as_the_same_variables(tmp_path, rows, delimiter):
    path = tmp_path / "in.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(["review", "label"])
        writer.writerows(rows)
    assert [job.variables for job in jobs_of(path)] == [{"review": review, "label": label} for review, label in rows]


@given(values=st.lists(TEXT, min_size=1, max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_single_column_reads_back_too(tmp_path, values):
    path = tmp_path / "in.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["review"], *([value] for value in values)])
    assert [job.variables["review"] for job in jobs_of(path)] == values


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(values=st.lists(JSON, min_size=1, max_size=10), ascii_only=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_json_value_of_a_line_reads_back_as_the_same_variable(tmp_path, values, ascii_only):
    path = tmp_path / "in.jsonl"
    lines = (json.dumps({"review": value}, ensure_ascii=ascii_only) + "\n" for value in values)
    path.write_text("".join(lines), encoding="utf-8")
    assert [job.variables["review"] for job in jobs_of(path)] == values


NAMES = st.none() | st.sampled_from(["", "t1", "a:b@c.d_e-f", "t 1", "é", "t\n", "x" * 200, "x" * 201]) | TEXT
METADATA = st.dictionaries(
    TEXT, st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
)


@given(
    row=st.fixed_dictionaries(
        {},
        optional={
            "review": JSON,
            "custom_id": NAMES | st.integers(),
            "thread_id": NAMES,
            "message": NAMES,
            "metadata": METADATA,
            "label": JSON,
            '"quoted" \\ ключ\u2028': JSON,
        },
    ),
    version=st.none() | st.integers(min_value=1, max_value=10),
    environment=st.sampled_from(["production", "staging"]),
    number=st.integers(min_value=0, max_value=2**40),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_row_is_taken_and_written_exactly_as_a_job_of_the_same_fields_is(tmp_path, row, version, environment, number):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assistant = assistant_of("{{ review }}", environment=environment, strict_variables=False)
    (entry,) = read_rows(path, assistant, version=version)
    custom_id = row.pop("custom_id", None)
    fields = {
        "custom_id": None if custom_id in {None, ""} else str(custom_id),
        "thread_id": row.pop("thread_id", None) or None,
        "messages": [{"role": "user", "content": message}] if (message := row.pop("message", None)) else [],
        "metadata": row.pop("metadata", {}),
        "variables": row,
    }
    try:
        job = InvokeJob(assistant=ADDRESS, environment=environment, version=version, **fields)
    except ValidationError:
        assert isinstance(entry, BadRow)
        return
    assert isinstance(entry, WrittenJob)
    record = JobRecord(id=f"b-1.{number}", job=job, batch_id="b-1", row=number)
    as_enqueued = batch_entry(entry, batch_id="b-1", row=number)
    assert as_enqueued.record == record.model_dump_json(exclude_defaults=True, by_alias=True).encode()
    assert as_enqueued[2:] == ("B", job.route, job.workspace, job.thread_id or "", number)
    assert as_enqueued.id == record.id
    assert JobRecord.model_validate_json(as_enqueued.record) == record


@given(content=st.binary(max_size=200), name=st.sampled_from(["in.csv", "in.jsonl"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_bytes_make_the_reader_fail_with_anything_but_an_input_error(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(b"review,label\n" * (name == "in.csv") + content)
    problems: list[InputError] = []
    try:
        problems += [entry.problem for entry in read_rows(path, REVIEWS) if isinstance(entry, BadRow)]
    except InputError as exc:
        problems.append(exc)
    assert all(problem.file == str(path) and problem.mend for problem in problems)
