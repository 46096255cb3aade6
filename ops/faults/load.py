"""The producer, an application that may die at any moment: `python -m ops.faults.load DIRECTORY`.

It writes down what it is about to enqueue, enqueues it, and writes down, to the disk, that this was
acknowledged. When it is started again it first sends what was not, under the same ids, as the client's errors say.
It ends, with status 0, once the stage's finish file is there.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import cast

import redis
from pydantic import SecretStr
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, select

from ops.faults.facts import Intended, IntendedJob, Log, read_log
from ops.faults.orders import Orders, again, as_json, from_json
from ops.faults.script import ASSISTANT_OF
from ops.faults.stage import HOST, Stage
from producer.client import Producer
from schemas import names
from schemas.chat import Message
from schemas.database import engine_for
from schemas.errors import ProducerError
from schemas.job import InvokeJob
from schemas.outcome import Status
from schemas.settings import Settings
from schemas.tables import Batch, Job

# Above so many jobs that have not ended it waits: what is left at the end must end soon.
OPEN_AT_MOST = 60
_RETRY_S = 0.2
_PAUSE_S = (0.1, 1.5)
_CANCEL_AFTER_S = (0.0, 2.0)


class Load:
    """One life of the producer."""

    def __init__(self, stage: Stage) -> None:
        """Learn from the log what the lives before did."""
        self._stage = stage
        self._orders = Orders(seed=stage.seed, job_webhooks=stage.job_webhooks)
        self._log = Log(stage.log_of("load"), to_disk=True)
        self._producer: Producer | None = None
        self._engine = engine_for(Settings(database_url=SecretStr(stage.database_url)).effective_database_url)
        self._redis = redis.Redis.from_url(stage.redis_url, socket_timeout=5, socket_connect_timeout=5)
        self._open: set[str] = set()
        self._unfinished: list[Intended] = []
        self._done: set[str] = set()
        for order in recorded(stage):
            self._orders.note(order)
            self._open.update(job.id for job in order.jobs if order.acknowledged)
            self._unfinished.append(order)
        self._retried = {order.retry_of for order in self._unfinished}
        self._done = {line["cancelled"] for line in read_log(stage.log_of("load")) if "cancelled" in line}

    def run(self) -> None:
        """Enqueue until there is enough."""
        for order in self._unfinished:
            self._finish(order)
        pauses = random.Random()  # noqa: S311 - timing is real
        while not self._stage.finish_file.exists():
            if self._still_open() >= OPEN_AT_MOST:
                time.sleep(_RETRY_S)
                continue
            order = self._orders.next()
            self._log.write(intent=as_json(order))
            self._finish(order)
            time.sleep(pauses.uniform(*_PAUSE_S))

    def _finish(self, order: Intended) -> None:
        if not order.acknowledged:
            self._until_done(lambda producer: self._enqueue(producer, order))
            self._log.write(acknowledged=order.id)
            self._open.update(job.id for job in order.jobs)
        if order.cancelled and order.id not in self._done:
            time.sleep(random.uniform(*_CANCEL_AFTER_S))  # noqa: S311 - timing is real
            self._until_done(lambda producer: self._cancel(producer, order.id))
            self._log.write(cancelled=order.id)
        if order.cancelled and self._stage.retries and order.id not in self._retried:
            self._retry(order)

    def _retry(self, order: Intended) -> None:
        """Run what a cancelled batch left anew, once it has ended."""
        rows = self._not_succeeded(order.id)
        while rows is None:
            time.sleep(_RETRY_S)
            rows = self._not_succeeded(order.id)
        if rows:
            retry = again(order, retry_id=self._retry_id(order.id), rows=rows)
            self._log.write(intent=as_json(retry))
            self._finish(retry)

    def _enqueue(self, producer: Producer, order: Intended) -> None:
        if order.retry_of is not None:
            self._run_retry(producer, order)
            return
        jobs = [self._job(order, job) for job in order.jobs]
        if order.is_batch:
            webhook = self._url(order.workspace) if order.webhook else None
            producer.enqueue_many(jobs, batch_id=order.id, webhook=webhook)
        else:
            producer.enqueue(jobs[0])

    def _run_retry(self, producer: Producer, order: Intended) -> None:
        status = producer.batch(order.id).status()
        if status is not None and status.total is not None:
            # A life before this one has done it, and died before it could write that down.
            return
        environment = {"ASSISTQ_REDIS_URL": self._stage.redis_url, "ASSISTQ_DATABASE_URL": self._stage.database_url}
        command = [str(Path(sys.executable).with_name("assistq")), "retry", str(order.retry_of), "--json"]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ProducerError(f"assistq retry: {done.stderr}")

    def _not_succeeded(self, batch_id: str) -> list[int] | None:
        """Return the rows of a batch that did not succeed; None before it has ended, as far as SQL says."""
        try:
            with Session(self._engine) as session:
                if session.get(Batch, batch_id) is None:
                    return None
                found = select(Job.row).where(Job.batch_id == batch_id, Job.status != Status.SUCCEEDED.value)
                return sorted(row for row in session.exec(found) if row is not None)
        except SQLAlchemyError:
            return None

    def _retry_id(self, batch_id: str) -> str:
        # Not on top: the product may not have it yet.
        named: str = import_module("schemas.batch").retry_id(batch_id, 1)
        return named

    def _cancel(self, producer: Producer, batch_id: str) -> None:
        status = producer.batch(batch_id).status()
        if status is not None and not status.ended:
            producer.batch(batch_id).cancel()

    def _job(self, order: Intended, job: IntendedJob) -> InvokeJob:
        return InvokeJob(
            assistant=f"{order.workspace}/chaos/{ASSISTANT_OF[job.task.kind]}",
            id=None if order.is_batch else job.id,
            thread_id=job.thread_id,
            messages=(Message(role="user", content=job.task.text()),),
            webhook=self._url(order.workspace) if job.webhook else None,
        )

    def _url(self, workspace: str) -> str:
        return f"http://{HOST}:{self._stage.receiver_port}/{workspace}"

    def _until_done(self, do: Callable[[Producer], None]) -> None:
        while True:
            try:
                if self._producer is None:
                    self._producer = Producer.from_settings(Settings(), redis_url=self._stage.redis_url)
                do(self._producer)
                return
            except ProducerError as exc:
                print(f"again: {exc}", flush=True)
                time.sleep(_RETRY_S)

    def _still_open(self) -> int:
        """Return how many acknowledged jobs have not ended; without an answer, as many as were open before."""
        if len(self._open) < OPEN_AT_MOST:
            return len(self._open)
        ids = list(self._open)
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id in ids:
                    pipe.exists(names.job(job_id))
                found = cast("list[int]", pipe.execute())
        except redis.RedisError:
            return len(self._open)
        self._open = {job_id for job_id, exists in zip(ids, found, strict=True) if exists}
        return len(self._open)


def recorded(stage: Stage) -> Iterator[Intended]:
    """Yield what the producer wanted to enqueue so far, in order, and whether that was acknowledged."""
    lines = list(read_log(stage.log_of("load")))
    acknowledged = {line["acknowledged"] for line in lines if "acknowledged" in line}
    for line in lines:
        if "intent" in line:
            yield from_json(line["intent"], acknowledged=line["intent"]["id"] in acknowledged)


if __name__ == "__main__":
    Load(Stage.load(sys.argv[1])).run()
