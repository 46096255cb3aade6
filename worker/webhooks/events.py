"""What deliveries say: the types, ids and data of the events that are told. Pure.

| event | told when | data |
| --- | --- | --- |
| `job.<status>` | a job that names a webhook ended | `job_data` |
| `batch.<state>` | a batch that names a webhook ended | `batch_data` (schemas/batch_events.py) |

A job's content may be of any size and a body may not: see `job_data` for what is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from schemas import money
from schemas.result import JobResult
from schemas.tables import storable

MAX_BODY_BYTES = 64 * 1024
# What stands around the data: the event's type and timestamp.
_ENVELOPE_BYTES = 256
# `"output_bytes":12345678901,"content_gone":true,`
_REMARKS_BYTES = 64
_NULL_BYTES = len("null")


def job_event_type(result: JobResult) -> str:
    """Return the type of the event that tells of the job's end."""
    return f"job.{result.status.value}"


def job_event_id(result: JobResult) -> str:
    """Return the one id of a job's end."""
    return f"msg_{result.job_id}_{result.status.value}"


def job_data(result: JobResult, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the event of a job's end says, as JSON of few enough bytes for a body of MAX_BODY_BYTES.

    What does not fit is cut if it is text, else null, and `truncated` is true. `output_bytes` tells the whole
    length of an output that was cut or left out: of the text, or of the value's JSON, in UTF-8.
    `cost` is an amount of money as a decimal string.
    """
    whole = storable(result.model_dump(mode="json"))
    fixed = {
        **{name: whole[name] for name in _FIXED},
        "cost": money.amount(result.cost_nano),
        "truncated": False,
    }
    content = {"metadata": storable(dict(metadata)), **{name: whole[name] for name in _CONTENT}}
    data = {**fixed, **dict.fromkeys(content)}
    left_bytes = MAX_BODY_BYTES - _ENVELOPE_BYTES - _REMARKS_BYTES - _bytes(data)
    for name, value in content.items():
        data[name] = _fitting(value, left_bytes + _NULL_BYTES)
        left_bytes -= _bytes(data[name]) - _NULL_BYTES
        if data[name] != value:
            data["truncated"] = True
    if data["output"] != content["output"]:
        output = content["output"]
        data["output_bytes"] = len(output.encode()) if isinstance(output, str) else _bytes(output)
    return data


# Short by what may stand in them.
_FIXED = (
    "job_id",
    "batch_id",
    "custom_id",
    "status",
    "error_code",
    "assistant",
    "version",
    "thread_id",
    "requests",
    "prompt_tokens",
    "completion_tokens",
    "attempts",
    "finished_at",
)
# The first that do not fit are cut: what is most wanted, or short as a rule, comes first.
_CONTENT = ("model", "finish_reason", "error", "output", "tool_calls", "raw_reply", "choices", "retrieved")


def _fitting(value: Any, most_bytes: int) -> Any:
    if isinstance(value, str):
        return _cut(value, most_bytes)
    return value if _bytes(value) <= most_bytes else None


def _cut(text: str, most_bytes: int) -> str:
    """Return as much of the text as its JSON may take bytes; an empty one takes fewer than null does."""
    if _bytes(text) <= most_bytes:
        return text
    # No character takes less than a byte.
    text = text[:most_bytes]
    fits, too_long = 0, len(text) + 1
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if _bytes(text[:middle]) <= most_bytes:
            fits = middle
        else:
            too_long = middle
    return text[:fits]


def _bytes(value: Any) -> int:
    return len(to_json(value))
