"""The demo's two small assistants, run on the real local model as the demo runs them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from producer.bulk import assistant_file
from producer.records import Records
from schemas.chat import Message
from schemas.database import engine_for
from tests.command_line import Installation
from worker.tools.builtin import word_count

EXAMPLES = Path(__file__).resolve().parents[2] / "ops" / "examples"
# On a busy machine the model takes long.
TIMEOUT_S = 300

pytestmark = [pytest.mark.local_model, pytest.mark.timeout(TIMEOUT_S + 20)]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Installation]:
    """An installation with the local model, which does one row after the other."""
    with Installation(tmp_path, ASSISTQ_PROCESSES="1", ASSISTQ_THREADS="1") as installation:
        yield installation


def run(shell: Installation, file: str, assistant: str, column: str) -> Any:
    """Run an example to its end, which must be a good one, and return the summary."""
    ended = shell.run(
        *("run", EXAMPLES / file, "--assistant", EXAMPLES / assistant, "--expect", column),
        *("--out", shell.directory / "results.csv", "--json"),
        timeout_s=TIMEOUT_S,
    )
    assert ended.code == 0, ended.err
    return ended.json


def messages(shell: Installation, thread_id: str) -> list[Message]:
    engine = engine_for(shell.settings.effective_database_url)
    stored = Records(engine).thread(thread_id, workspace="demo")
    engine.dispose()
    return [Message.model_validate(each.message) for each in stored]


def test_each_order_becomes_an_object_that_fits_the_schema(shell: Installation) -> None:
    output = assistant_file.load(EXAMPLES / "orders.yaml").output
    assert output is not None
    assert output.json_schema is not None
    validator = jsonschema_rs.validator_for(output.json_schema)

    summary = run(shell, "orders.jsonl", "orders.yaml", "expected")

    results = shell.results("results.csv")
    assert [result["status"] for result in results] == ["succeeded"] * 6
    assert all(validator.is_valid(json.loads(result["output"])) for result in results)
    assert summary["accuracy"] > 0.5


def test_each_text_is_counted_by_the_tool_and_answered(shell: Installation) -> None:
    with (EXAMPLES / "texts.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))

    summary = run(shell, "texts.csv", "word-count.yaml", "answer")

    results = shell.results("results.csv")
    assert [result["status"] for result in results] == ["succeeded"] * len(rows)
    for row, result in zip(rows, results, strict=True):
        asked, called, counted, *_, answered = messages(shell, row["thread_id"])
        assert (asked.role, asked.content) == ("user", row["message"])
        (call,) = called.tool_calls
        assert (call.name, call.id) == ("word_count", counted.tool_call_id)
        assert json.loads(counted.text) == word_count(**json.loads(call.arguments))
        assert (answered.role, answered.content) == ("assistant", result["output"])
    assert summary["accuracy"] > 0.5
