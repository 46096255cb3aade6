"""Webhooks of jobs that are not to be recorded: content from a real Redis, deliveries in real databases, real HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import Engine
from sqlmodel import Session, select
from standardwebhooks import Webhook

from producer import Producer
from schemas import JobResult, Status, names
from schemas.tables import Delivery
from tests.given import WORKSPACE, a_job, a_result, claimed
from tests.loopback_http import Asked, LoopbackHttp, Told
from worker.events import Events
from worker.queue.queue import Claimed, JobQueue
from worker.store.base import Settlement
from worker.store.sql import SqlStore
from worker.webhooks.decide import JITTER, RETRY_AFTER_S
from worker.webhooks.deliver import WebhookSender
from worker.webhooks.deliveries import Deliveries
from worker.webhooks.post import WebhookPost
from worker.webhooks.sql_threads import SqlThreads
from worker.webhooks.unrecorded import UnrecordedContent

pytestmark = pytest.mark.anyio

CANARY = "CANARY-words"
LONGEST_SCHEDULE_S = sum(RETRY_AFTER_S) * (1 + JITTER)
TAKEN = Told(status=204)
AT = datetime(2027, 1, 1, tzinfo=UTC)


@dataclass
class Ending:
    """A job that is about to end, the sender of its webhook, and the receiver; `answer` is what that says."""

    job: Claimed
    redis: Redis
    engine: Engine
    queue: JobQueue
    store: SqlStore
    sender: WebhookSender
    receiver: LoopbackHttp
    now: datetime = AT
    answer: Told = TAKEN

    @property
    def result(self) -> JobResult:
        return a_result(self.job.record, output=f"said {CANARY}")

    async def commit(self) -> None:
        """Write the end to SQL."""
        await self.store.settle(
            Settlement(
                record=self.job.record,
                epoch=self.job.epoch,
                enqueued_ms=self.job.enqueued_ms,
                result=self.result,
                new_messages=(),
            )
        )

    async def finish(self) -> None:
        """Write it to Redis."""
        await self.queue.finish(self.job, self.result)

    async def attempt(self) -> Delivery:
        """Attempt the delivery, and return its row."""
        with Session(self.engine) as session:
            delivery_id = session.exec(select(Delivery.id)).one()
        await self.sender.attempt(delivery_id)
        with Session(self.engine) as session:
            return session.exec(select(Delivery)).one()

    async def kept_s(self) -> int:
        """Return for how many seconds Redis still keeps the result; -2 if it has none."""
        return int(await self.redis.ttl(names.result(self.job.id)))

    def received(self) -> list[Any]:
        """Return what the receiver got; each is verified."""
        (secret,) = Deliveries(self.engine).secrets_of(WORKSPACE, now=self.now)
        # The timestamp is that of the sender's clock, which the test sets.
        return [
            json.loads(asked.body)
            for asked in self.receiver.asked
            if Webhook(secret).sign(asked.headers["webhook-id"], self.now, asked.body.decode())
            in asked.headers["webhook-signature"].split()
        ]


@pytest.fixture
async def ending(redis_client: Redis, producer: Producer, engine: Engine) -> AsyncIterator[Ending]:
    def answer(_: Asked) -> Told:
        return made.answer

    queue, store = JobQueue(redis_client), SqlStore(engine)
    with LoopbackHttp(answer) as receiver:
        job = a_job("j", do_not_record=True, webhook=f"{receiver.url}/hook", metadata={"of": CANARY})
        producer.enqueue(job)
        post = WebhookPost(allows_private=lambda _: True, max_connections=1)
        content = UnrecordedContent(redis_client)
        sender = WebhookSender(
            post,
            deliveries=Deliveries(engine),
            threads=(threads := SqlThreads()),
            events=Events(),
            body_of=content.body_of,
            ended=content.let_go,
            now=lambda: made.now,
            draw=lambda: 0.0,
        )
        made = Ending(await claimed(queue), redis_client, engine, queue, store, sender, receiver)
        yield made
        await post.aclose()
        threads.close()
    store.close()


async def test_the_content_is_sent_from_redis_and_let_go_once_delivered(ending: Ending) -> None:
    await ending.commit()
    await ending.finish()
    assert await ending.kept_s() > LONGEST_SCHEDULE_S
    delivery = await ending.attempt()
    assert (delivery.state, delivery.attempts) == ("delivered", 1)
    (event,) = ending.received()
    assert (event["type"], event["data"]["output"]) == ("job.succeeded", f"said {CANARY}")
    assert event["data"]["metadata"] == {"of": CANARY}
    assert "content_gone" not in event["data"]
    assert ending.receiver.asked[0].headers["webhook-id"] == delivery.id == "msg_j_succeeded"
    assert CANARY not in delivery.body
    assert 0 < await ending.kept_s() <= names.UNRECORDED_RESULT_TTL_S


async def test_what_is_not_yet_in_redis_is_waited_for_and_no_attempt_is_used_up(ending: Ending) -> None:
    await ending.commit()
    delivery = await ending.attempt()
    assert ending.receiver.asked == []
    assert (delivery.state, delivery.attempts, delivery.last_error) == ("pending", 0, None)
    assert delivery.next_attempt_at - ending.now <= timedelta(seconds=5)
    await ending.finish()
    ending.now = delivery.next_attempt_at
    assert (await ending.attempt()).attempts == 1
    (event,) = ending.received()
    assert event["data"]["output"] == f"said {CANARY}"


async def test_a_receiver_that_quotes_what_it_got_is_not_recorded_and_gets_it_again(ending: Ending) -> None:
    await ending.commit()
    await ending.finish()
    ending.answer = Told(status=500, body=CANARY.encode())
    delivery = await ending.attempt()
    assert (delivery.state, delivery.last_status) == ("pending", 500)
    assert delivery.last_error == "HTTP 500; the words are not recorded"
    assert await ending.kept_s() > LONGEST_SCHEDULE_S
    ending.now, ending.answer = delivery.next_attempt_at, TAKEN
    assert (await ending.attempt()).state == "delivered"
    first, second = ending.receiver.asked
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


async def test_a_receiver_whose_status_line_is_none_is_not_quoted(ending: Ending) -> None:
    await ending.commit()
    await ending.finish()
    ending.answer = Told(headers={CANARY: "\x00"})
    delivery = await ending.attempt()
    assert (delivery.state, delivery.last_status) == ("pending", None)
    assert delivery.last_error == "RemoteProtocolError; the words are not recorded"


async def test_a_delivery_that_is_given_up_lets_the_content_go(ending: Ending) -> None:
    await ending.commit()
    await ending.finish()
    ending.answer = Told(status=410)
    assert (await ending.attempt()).state == "failed"
    assert 0 < await ending.kept_s() <= names.UNRECORDED_RESULT_TTL_S


async def test_content_that_is_gone_is_said_to_be_gone(ending: Ending) -> None:
    await ending.commit()
    await ending.finish()
    await ending.redis.delete(names.result("j"))
    assert (await ending.attempt()).state == "delivered"
    (event,) = ending.received()
    assert (event["data"]["content_gone"], event["data"]["output"]) == (True, None)
    assert (event["data"]["status"], event["data"]["prompt_tokens"]) == (Status.SUCCEEDED, 10)


async def test_the_caller_has_a_minute_to_ask_for_the_result(ending: Ending, producer: Producer) -> None:
    await ending.commit()
    await ending.finish()
    await ending.attempt()
    assert producer.job("j").result(timeout_s=0).output == f"said {CANARY}"
