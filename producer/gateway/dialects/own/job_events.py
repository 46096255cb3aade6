"""What becomes of a job, as server-sent events: its states, its parts if it is told as a stream, and its end.

| event | data |
| --- | --- |
| `state` | the job, when it waits and when it runs (JobView) |
| `part` | a part of its reply as it comes, of a job with `tell: stream` (schemas/stream.py); what was told of a step that a later `begun` has not in its `steps` is void |
| `end` | the job, ended: the last event |

An event's id names the last part before it: who comes back with it as `Last-Event-ID` misses none.
"""  # noqa: E501 - a table row is one line

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any, cast

from producer.gateway.access import Caller
from producer.gateway.dialects.own.job_view import JobView, find_job
from producer.gateway.failures import told_of
from producer.gateway.http import sse
from producer.gateway.parts import Parts
from producer.gateway.problem import Kind, Problem
from schemas import names
from schemas.stream import PART_FIELD, STREAM_PART

# States are not published, ends and parts are; a word that was lost is made up for by looking again.
_LOOK_AGAIN_S = 1.0
_PARTS_AT_ONCE = 256
_BEGINNING = "0-0"
_EVENT_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


def checked_event_id(last_event_id: str | None) -> str:
    """Return where to go on, from the header; Problem 400 for what is no id of ours."""
    if not last_event_id:
        return _BEGINNING
    if _EVENT_ID.fullmatch(last_event_id) is None:
        raise Problem(Kind.BAD_REQUEST, "Last-Event-ID is none of ours", code="invalid_event_id", param="Last-Event-ID")
    return last_event_id


async def job_events(parts: Parts, job_id: str, caller: Caller, *, last: str) -> AsyncIterator[str]:
    """Yield the events after the part `last`, up to the job's end; Problem 404 before the first for an unknown job."""
    shown: JobView | None = None
    async with parts.switchboard.listening(names.done_channel(job_id)) as news:
        while True:
            news.clear()
            try:
                # The job before its parts: once it has ended, all of them are there.
                job = await find_job(parts, job_id, caller)
                entries = cast(
                    "list[Any]", await parts.redis.xrange(names.parts(job_id), min=f"({last}", count=_PARTS_AT_ONCE)
                )
            except Exception as exc:
                if shown is None:
                    raise
                yield sse.event({"message": told_of(exc).message}, name="error", event_id=last)
                return
            if not job.ended and (shown is None or shown.status != job.status):
                yield sse.event(job.model_dump(mode="json"), name="state", event_id=last)
            shown = job
            for entry_id, fields in entries:
                last = entry_id.decode()
                part = STREAM_PART.validate_json(fields[PART_FIELD.encode()])
                yield sse.event(part.model_dump(mode="json"), name="part", event_id=last)
            if len(entries) == _PARTS_AT_ONCE:
                continue
            if job.ended:
                yield sse.event(job.model_dump(mode="json"), name="end", event_id=last)
                return
            try:
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await news.wait()
            except TimeoutError:
                continue
