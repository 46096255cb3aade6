"""The Dramatiq actors: a message is a hint, decoded and handed on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import dramatiq
from dramatiq import Actor, Broker

from schemas import names
from worker.queue.queue import Hint

RunJob = Callable[[Hint], Awaitable[None]]
DeliverWebhook = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Actors:
    """The declared actors; sending is a blocking call to Redis."""

    broker: Broker
    run_job: Actor[[str, int], None]
    deliver_webhook: Actor[[str], None]

    def send_jobs(self, hints: list[Hint]) -> None:
        """Put a hint in the queue for each."""
        for hint in hints:
            self.broker.enqueue(self.run_job.message(hint.job_id, hint.epoch))

    def send_deliveries(self, delivery_ids: list[str]) -> None:
        """Put a hint in the queue for each delivery."""
        for delivery_id in delivery_ids:
            self.broker.enqueue(self.deliver_webhook.message(delivery_id))


def declare(broker: Broker, *, run: RunJob, deliver: DeliverWebhook) -> Actors:
    """Declare the actors on the broker.

    Dramatiq neither retries nor delays: what is tried again, and when, is the flow's and the
    queue's to say, so a message that gets lost or comes twice does no harm.
    """

    @dramatiq.actor(broker=broker, actor_name=names.RUN_JOB_ACTOR, queue_name=names.JOBS_QUEUE)
    async def run_job(job_id: str, epoch: int) -> None:
        await run(Hint(job_id=job_id, epoch=epoch))

    @dramatiq.actor(broker=broker, actor_name=names.DELIVER_WEBHOOK_ACTOR, queue_name=names.WEBHOOKS_QUEUE)
    async def deliver_webhook(delivery_id: str) -> None:
        await deliver(delivery_id)

    return Actors(broker=broker, run_job=run_job, deliver_webhook=deliver_webhook)
