"""What the producer enqueues next: follows from the seed and the number of what it enqueued before. Pure."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from ops.faults.facts import Intended, IntendedJob
from ops.faults.script import Kind, Task
from ops.faults.stage import WORKSPACES

_KINDS = {Kind.TEXT: 32, Kind.SLOW: 14, Kind.OBJECT: 14, Kind.REPAIR: 8, Kind.TOOLS: 27, Kind.REFUSED: 5}
_BATCH_SHARE, _CANCELLED_SHARE, _HOOKED_SHARE, _THREAD_SHARE = 0.45, 0.15, 0.75, 0.45
_BATCH_ROWS = (3, 16)
# So many threads are open at once in a workspace, and each gets so many jobs.
THREADS_OPEN, JOBS_A_THREAD = 3, 8
_TAKES_S = {Kind.SLOW: (3.0, 7.0)}
_TAKES_OTHERS_S = (0.05, 0.7)


class Orders:
    """Makes the next order; tell it of all that were made before, in order."""

    def __init__(self, *, seed: int, job_webhooks: bool) -> None:
        """Begin with none."""
        self._seed = seed
        self._job_webhooks = job_webhooks
        self._made = 0
        self._thread_jobs = dict.fromkeys(WORKSPACES, 0)

    def note(self, order: Intended) -> None:
        """Count an order that was made before."""
        if order.retry_of is not None:
            return
        self._made += 1
        self._thread_jobs[order.workspace] += sum(job.thread_id is not None for job in order.jobs)

    def next(self) -> Intended:
        """Return the next order, and count it."""
        chosen = random.Random(f"{self._seed}.{self._made}")  # noqa: S311 - a workload
        workspace = chosen.choice(WORKSPACES)
        is_batch = chosen.random() < _BATCH_SHARE
        id_ = f"{'b' if is_batch else 'j'}{self._made}"
        # A batch's rows have the ids that the product gives them.
        ids = [f"{id_}.{row}" for row in range(chosen.randint(*_BATCH_ROWS))] if is_batch else [id_]
        order = Intended(
            id=id_,
            is_batch=is_batch,
            workspace=workspace,
            jobs=tuple(self._job(job_id, workspace, chosen) for job_id in ids),
            webhook=is_batch and chosen.random() < _HOOKED_SHARE,
            cancelled=is_batch and chosen.random() < _CANCELLED_SHARE,
            acknowledged=False,
        )
        self._made += 1
        return order

    def _job(self, job_id: str, workspace: str, chosen: random.Random) -> IntendedJob:
        kind = chosen.choices(list(_KINDS), list(_KINDS.values()))[0]
        takes_s = round(chosen.uniform(*_TAKES_S.get(kind, _TAKES_OTHERS_S)), 2)
        of_tools = {"rounds": chosen.randint(1, 3), "calls": chosen.randint(1, 3)} if kind is Kind.TOOLS else {}
        webhook = self._job_webhooks and chosen.random() < _HOOKED_SHARE
        thread_id = self._thread(workspace) if chosen.random() < _THREAD_SHARE else None
        return IntendedJob(job_id, thread_id, Task(job_id, kind, takes_s, **of_tools), webhook)

    def _thread(self, workspace: str) -> str:
        number = self._thread_jobs[workspace]
        self._thread_jobs[workspace] += 1
        return f"t{number // (THREADS_OPEN * JOBS_A_THREAD)}-{number % THREADS_OPEN}"


def as_json(order: Intended) -> dict[str, Any]:
    """Return the order as a log keeps it."""
    jobs = [
        {"id": job.id, "thread": job.thread_id, "task": job.task.text(), "webhook": job.webhook} for job in order.jobs
    ]
    return {
        "id": order.id,
        "batch": order.is_batch,
        "workspace": order.workspace,
        "webhook": order.webhook,
        "cancelled": order.cancelled,
        "retry_of": order.retry_of,
        "jobs": jobs,
    }


def from_json(fields: dict[str, Any], *, acknowledged: bool) -> Intended:
    """Read what `as_json` wrote."""
    jobs = tuple(
        IntendedJob(job["id"], job["thread"], task, job["webhook"])
        for job in fields["jobs"]
        if (task := Task.read(job["task"])) is not None
    )
    return Intended(
        id=fields["id"],
        is_batch=fields["batch"],
        workspace=fields["workspace"],
        jobs=jobs,
        webhook=fields["webhook"],
        cancelled=fields["cancelled"],
        acknowledged=acknowledged,
        retry_of=fields["retry_of"],
    )


def again(order: Intended, *, retry_id: str, rows: list[int]) -> Intended:
    """Return the order that a retry of a batch is, of these of its rows."""
    jobs = tuple(replace(order.jobs[row], id=f"{retry_id}.{row}") for row in rows)
    return replace(order, id=retry_id, jobs=jobs, cancelled=False, acknowledged=False, retry_of=order.id)
