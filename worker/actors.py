"""The Dramatiq actors: a message is a handful of hints, decoded and handed on.

An actor waits for nothing: what it hands on runs on the process's event loop, where leases
and not Dramatiq's acknowledgements protect it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dramatiq
from dramatiq import Actor, Broker

from schemas import names
from worker.queue.queue import Hint

# A message costs some 0.3 ms of processor time, however many hints it carries.
HINTS_AT_MOST = 8

TakeJobs = Callable[[Sequence[Hint]], None]
TakeDeliveries = Callable[[Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class Actors:
    """The declared actors; sending is a blocking call to Redis."""

    broker: Broker
    run_job: Actor[..., None]
    deliver_webhook: Actor[[str], None]

    def send_jobs(self, hints: Sequence[Hint], *, together: int = 1) -> None:
        """Put the hints in the queue, up to `together` in a message."""
        for first in range(0, len(hints), together):
            parts = [part for hint in hints[first : first + together] for part in (hint.job_id, hint.epoch)]
            self.broker.enqueue(self.run_job.message(*parts))

    def send_deliveries(self, delivery_ids: Sequence[str]) -> None:
        """Put a hint in the queue for each delivery."""
        for delivery_id in delivery_ids:
            self.broker.enqueue(self.deliver_webhook.message(delivery_id))


def declare(broker: Broker, *, take_jobs: TakeJobs, take_deliveries: TakeDeliveries) -> Actors:
    """Declare the actors on the broker.

    Dramatiq neither retries nor delays: what is tried again, and when, is the flow's and the
    queue's to say, so a message that gets lost or comes twice does no harm.
    """

    @dramatiq.actor(broker=broker, actor_name=names.RUN_JOB_ACTOR, queue_name=names.JOBS_QUEUE)
    def run_job(*parts: Any) -> None:
        """Take job id, epoch, job id, epoch and so on."""
        take_jobs([Hint(job_id=job_id, epoch=epoch) for job_id, epoch in zip(parts[::2], parts[1::2], strict=True)])

    @dramatiq.actor(broker=broker, actor_name=names.DELIVER_WEBHOOK_ACTOR, queue_name=names.WEBHOOKS_QUEUE)
    def deliver_webhook(delivery_id: str) -> None:
        take_deliveries([delivery_id])

    return Actors(broker=broker, run_job=run_job, deliver_webhook=deliver_webhook)


def hints_together(capacity: int) -> int:
    """Return how many hints a message may carry to processes that run `capacity` jobs at once.

    Few for small ones: what a process has fetched waits there for a place, not for another process.
    """
    return max(1, min(HINTS_AT_MOST, capacity // 32))
