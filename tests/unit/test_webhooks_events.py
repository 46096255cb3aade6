"""What a job's event says, and what is left of it where there is too much to say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import JobRecord, Status
from schemas.chat import ToolCall
from schemas.webhook import WebhookEvent
from tests.given import ADDRESS, NOW, a_job, a_result
from worker.webhooks.events import MAX_BODY_BYTES, job_data

RECORD = JobRecord(id="j.1", job=a_job(custom_id="row 7"))
# Each character takes another number of bytes in JSON: 1, 2, 4, 6, 2.
WIDE = 'aé😀\x01"'


def body_of(metadata: dict[str, Any] | None = None, **fields: Any) -> tuple[bytes, dict[str, Any]]:
    """Return the body of the event, and its data as a receiver reads them."""
    data = job_data(a_result(RECORD, **fields), metadata or {})
    body = WebhookEvent(type="job.succeeded", timestamp=NOW, data=data).model_dump_json().encode()
    read: dict[str, Any] = json.loads(body)["data"]
    return body, read


def test_an_event_says_what_the_job_came_to() -> None:
    calls = (ToolCall(id="c1", name="f", arguments="{}"),)
    _, data = body_of({"order": 17}, output={"label": "é"}, tool_calls=calls, model="m1", cost_nano=1_500_000)
    assert data == {
        "job_id": "j.1",
        "batch_id": None,
        "custom_id": "row 7",
        "status": "succeeded",
        "output": {"label": "é"},
        "thread_id": None,
        "assistant": ADDRESS,
        "version": None,
        "model": "m1",
        "finish_reason": None,
        "requests": 1,
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "cost": "0.0015",
        "attempts": 1,
        "error_code": None,
        "error": None,
        "raw_reply": None,
        "tool_calls": [calls[0].model_dump(mode="json")],
        "choices": [],
        "retrieved": [],
        "metadata": {"order": 17},
        "finished_at": "2026-11-21T12:00:00Z",
        "truncated": False,
    }


def test_a_text_that_is_too_large_is_cut_where_a_character_ends_and_fills_the_body() -> None:
    text = WIDE * 1_000_000
    body, data = body_of({"order": 17}, output=text)
    assert MAX_BODY_BYTES - 512 < len(body) <= MAX_BODY_BYTES
    assert text.startswith(data["output"])
    assert (data["truncated"], data["output_bytes"]) == (True, len(text.encode()))
    assert (data["metadata"], data["job_id"]) == ({"order": 17}, "j.1")


def test_a_value_that_is_too_large_is_left_out() -> None:
    value = {"labels": ["é"] * 100_000}
    body, data = body_of(output=value, raw_reply="short")
    assert len(body) <= MAX_BODY_BYTES
    assert (data["output"], data["truncated"], data["raw_reply"]) == (None, True, "short")
    assert data["output_bytes"] == len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def test_an_output_that_fits_is_whole_although_something_else_was_cut() -> None:
    body, data = body_of(status=Status.INVALID_OUTPUT, output=None, error="no label", raw_reply="x" * 5_000_000)
    assert len(body) <= MAX_BODY_BYTES
    assert (data["error"], data["truncated"]) == ("no label", True)
    assert data["raw_reply"].startswith("xxx")
    assert "output_bytes" not in data


@pytest.mark.parametrize("text", ["a\x00b", "half a pair \ud83d", "\udc00"])
def test_text_that_is_no_utf_8_is_told_all_the_same(text: str) -> None:
    _, data = body_of({"of": text}, output=[text], raw_reply=text)
    assert data["output"][0] == data["raw_reply"] == data["metadata"]["of"]
    assert "\x00" not in data["raw_reply"]
    assert data["truncated"] is False


LARGE = st.sampled_from(["", "short", WIDE * 30_000, "\x01" * 20_000, "😀" * 16_000, '"' * 70_000])


@given(
    output=LARGE | st.lists(LARGE, max_size=2),
    error=LARGE,
    raw_reply=LARGE,
    choices=st.lists(LARGE, max_size=2).map(tuple),
    model=LARGE,
    custom_id=st.sampled_from([None, "\x01" * 512]),
    metadata=st.dictionaries(st.just("of"), LARGE),
)
def test_a_body_is_never_larger_than_it_may_be(metadata: dict[str, Any], **fields: Any) -> None:
    body, data = body_of(metadata, **fields)
    assert len(body) <= MAX_BODY_BYTES
    content = ("output", "error", "raw_reply", "model")
    whole = all(data[name] == fields[name] for name in content) and data["metadata"] == metadata
    assert data["truncated"] is not (whole and data["choices"] == list(fields["choices"]))
