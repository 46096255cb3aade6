"""Gathers what a run left: the parts' logs, SQL and Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import redis
from sqlalchemy import Engine
from sqlmodel import Session, col, select

from ops.faults.facts import (
    BatchRow,
    DeliveryRow,
    Exchange,
    Facts,
    Intended,
    JobRow,
    Receipt,
    ThreadLine,
    read_log,
)
from ops.faults.load import recorded
from ops.faults.script import said_in
from ops.faults.stage import Stage
from schemas import names
from schemas.chat import Message
from schemas.tables import Batch, Delivery, Job, ThreadMessage

# What is there only while a job has not ended; the map of them all: schemas/names.py.
_LEFTOVERS = (
    *("job:", "journal:", "leases", "places", "entering:", "draining", "drain:", "drained", "snoozed", "thread:"),
    *("line:", "lines:", "lanes:", "ending", "batches", "linesof:", "tickets:", "held:"),
)
# Faults of our own that a worker logs.
_CRASHES = frozenset({"job_crashed", "tool_crashed", "uncaught exception"})
_SHOWN_CHARS = 300


def gather(stage: Stage, engine: Engine, *, orphans: list[str], unsettled: list[str], worker_logs: list[Path]) -> Facts:
    """Return all facts of a run whose servers still answer."""
    intended = tuple(recorded(stage))
    with redis.Redis.from_url(stage.redis_url, decode_responses=True) as queue:
        results, hashes = dict(_results(queue, intended)), dict(_batch_hashes(queue, intended))
        left = left_in(queue)
    with Session(engine) as session:
        return Facts(
            calls=tuple(_exchanges(stage.log_of("provider"), key="step")),
            effects=tuple(_exchanges(stage.log_of("tools"), key="call")),
            intended=intended,
            jobs=tuple(_job_row(row) for row in session.exec(select(Job))),
            batches=tuple(_batch_row(row) for row in session.exec(select(Batch))),
            thread_lines=tuple(_thread_line(row) for row in session.exec(select(ThreadMessage))),
            receipts=tuple(Receipt(**line) for line in read_log(stage.log_of("receiver"))),
            deliveries=tuple(_delivery_row(row) for row in session.exec(select(Delivery).order_by(col(Delivery.id)))),
            results=results,
            batch_hashes=hashes,
            left_in_redis=left,
            orphans=tuple(orphans),
            crashes=tuple(_crashes(worker_logs)),
            unsettled=tuple(unsettled),
        )


def left_in(queue: redis.Redis) -> dict[str, str]:
    """Return the keys of which nothing should be left once every job has ended, and what they hold."""
    keys = [str(key) for key in queue.scan_iter(match=f"{names.PREFIX}:*", count=1000)]
    return {key: _shown(queue, key) for key in keys if key.removeprefix(f"{names.PREFIX}:").startswith(_LEFTOVERS)}


def _shown(queue: redis.Redis, key: str) -> str:
    read: dict[str, tuple[str | int, ...]] = {
        "hash": ("HGETALL", key),
        "list": ("LRANGE", key, 0, 9),
        "set": ("SMEMBERS", key),
        "zset": ("ZRANGE", key, 0, 9, "WITHSCORES"),
        "string": ("GET", key),
    }
    kind = str(queue.type(key))
    return str(queue.execute_command(*read[kind]))[:_SHOWN_CHARS] if kind in read else kind


def _exchanges(log: Path, *, key: str) -> Iterator[Exchange]:
    ends: dict[tuple[int, int], dict[str, Any]] = {}
    arrivals: dict[tuple[int, int], dict[str, Any]] = {}
    for line in read_log(log):
        (ends if "fate" in line else arrivals)[line["server"], line["n"]] = line
    for which, line in arrivals.items():
        end = ends.get(which)
        yield Exchange(
            key=line[key],
            job_id=line["job"],
            pid=line["pid"],
            server_pid=line["server"],
            arrived_s=line["at_s"],
            ended_s=None if end is None else end["at_s"],
            fate="unknown" if end is None else end["fate"],
            prompt_tokens=line.get("prompt_tokens", 0),
            completion_tokens=line.get("completion_tokens", 0),
            history=line.get("history", ""),
        )


def _results(queue: redis.Redis, intended: tuple[Intended, ...]) -> Iterator[tuple[str, str]]:
    ids = [job.id for source in intended for job in source.jobs]
    if not ids:
        return
    kept = cast("list[str | None]", queue.mget([names.result(job_id) for job_id in ids]))
    for job_id, result in zip(ids, kept, strict=True):
        if result is not None:
            yield job_id, json.loads(result)["status"]


def _batch_hashes(queue: redis.Redis, intended: tuple[Intended, ...]) -> Iterator[tuple[str, Mapping[str, str]]]:
    for source in intended:
        if source.is_batch and (found := cast("dict[str, str]", queue.hgetall(names.batch(source.id)))):
            yield source.id, found


def _job_row(row: Job) -> JobRow:
    return JobRow(
        id=row.id,
        batch_id=row.batch_id,
        workspace=row.workspace,
        thread_id=row.thread_id,
        status=row.status,
        error_code=row.error_code,
        output=row.output,
        requests=row.requests,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
    )


def _batch_row(row: Batch) -> BatchRow:
    return BatchRow(
        id=row.id,
        state=row.state,
        total=row.total,
        counts=row.counts,
        requests=row.requests,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        webhook=row.webhook is not None,
    )


def _thread_line(row: ThreadMessage) -> ThreadLine:
    said = said_in(Message.model_validate(row.message).to_openai())
    return ThreadLine(row.workspace, row.thread_id, row.position, row.job_id, said)


def _delivery_row(row: Delivery) -> DeliveryRow:
    about = f"batch/{row.batch_id}" if row.job_id is None else f"job/{row.job_id}"
    return DeliveryRow(id=row.id, about=about, state=row.state)


def _crashes(logs: list[Path]) -> Iterator[str]:
    for log in logs:
        if not log.exists():
            continue
        for line in log.read_text("utf-8", "replace").splitlines():
            event = _event(line)
            if event.get("event") in _CRASHES:
                told = str(event.get("exception", "")).strip().splitlines()[-1:]
                yield f"{log.name}: {event['event']} of job {event.get('job_id')}: {' '.join(told)}"


def _event(line: str) -> dict[str, Any]:
    # Two processes may write into one line.
    if not line.startswith("{"):
        return {}
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
