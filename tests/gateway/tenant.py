"""A workspace that has one of everything that the gateway can name, and marks in all that it wrote.

Another workspace must meet none of it. Whoever gives the gateway a new kind of thing makes one here, and names it
in Names.
"""

from __future__ import annotations

import dataclasses
import json
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlmodel import Session, SQLModel, col, select

from schemas.signing_secrets import signing_secret
from schemas.tables import (
    Delivery,
    FileChunk,
    OpenAIBatch,
    StoredFile,
    ThreadMessage,
    WebhookEndpoint,
    WebhookSubscription,
)
from tests.at_work import Scene, Works
from tests.loopback_provider import Reply, answers, default_reply, hang_until
from tests.processes import until

# It stands in every text that the workspace wrote, got or named.
MARK = "canary"
HELD = f"{MARK} that waits"
# A digit becomes another digit, and what may be one in hexadecimal such a one.
_NEXT = str.maketrans("0123456789abcdefghijklmnopqrstuvwxyz", "1234567890bcdefahijklmnopqrstuvwxyzg")


@dataclasses.dataclass(frozen=True, slots=True)
class Names:
    """What a request may name; each is a thing of one workspace, or of none."""

    workspace: str
    project: str
    assistant: str
    environment: str
    model: str
    job_id: str
    batch_id: str
    thread_id: str
    message_id: str
    file_id: str
    attachment_id: str
    delivery_id: str
    webhook: str

    @property
    def address(self) -> str:
        """Return the assistant's address."""
        return f"{self.workspace}/{self.project}/{self.assistant}"

    def all(self) -> tuple[str, ...]:
        """Return all of them that no other workspace has, the longest first."""
        names = dataclasses.asdict(self)
        shared = ("environment", "model")
        return tuple(sorted((value for name, value in names.items() if name not in shared), key=len, reverse=True))

    def unlike(self) -> Names:
        """Return names of the same form that nothing has, anywhere."""
        unlike = {name: _unlike(value) for name, value in dataclasses.asdict(self).items()}
        return Names(**{**unlike, "model": self.model})


@dataclasses.dataclass(frozen=True, slots=True)
class Tenant:
    """The workspace: `ended` names what is over, `running` a job and a batch that are not."""

    works: Works
    workspace: str
    signing_secret: str
    ended: Names
    running: Names

    def rows(self) -> dict[str, set[str]]:
        """Return what SQL has of the workspace, by table: what others do must change nothing of it."""
        found = {}
        with self.works.engine.connect() as connection:
            for table in SQLModel.metadata.sorted_tables:
                rows = [row._mapping for row in connection.execute(table.select())]
                if "workspace" in table.columns:
                    rows = [row for row in rows if row["workspace"] == self.workspace]
                elif "address" in table.columns:
                    rows = [row for row in rows if row["address"].startswith(f"{self.workspace}/")]
                else:
                    assert table.name == "file_chunks", f"say here whose rows those of {table.name} are"
                    rows = [row for row in rows if row["file_id"] in {self.ended.file_id, self.ended.attachment_id}]
                found[table.name] = {repr(dict(row)) for row in rows}
        return found

    def held(self) -> list[bytes | None]:
        """Return how the job that has not ended is, as Redis has it."""
        names = ["record", "state", "epoch", "called_off"]
        return list(self.works.redis.hmget(f"aq:job:{self.running.job_id}", names))


@contextmanager
def tenant_of(works: Works) -> Iterator[Tenant]:
    """Make the workspace; its job that has not ended is let go at the end."""
    number = uuid.uuid4().hex[:12]
    scene = Scene(works, workspace=f"{MARK}-{number}")
    goes_on = threading.Event()

    def script(body: Any, n: int) -> Reply:
        if HELD in json.dumps(body):
            return hang_until(goes_on, then=answers(MARK))
        return default_reply(body, n)

    scene.address = f"{scene.workspace}/{MARK}-project-{number}/{MARK}-assistant-{number}"
    scene.plays(script)
    scene.assistant(
        description=f"{MARK} description", instructions=f"{MARK} instructions", variables={"a": f"{MARK} default"}
    )
    said: dict[str, Any] = {"metadata": {"note": f"{MARK} metadata"}, "variables": {"v": f"{MARK} variable"}}
    thread_id = f"thread_{uuid.uuid4().hex}"
    # The first succeeds; the second does not, so that there is something to retry.
    scene.succeeds(f"{MARK} question", thread_id=thread_id, **said)
    failed = scene.run(f"{MARK} with no such version", environment="nowhere", **said)
    assert not failed.succeeded
    batch = works.producer.enqueue_many([scene.job(f"{MARK} row", **said)], label=f"{MARK} label")
    batch.wait(timeout_s=60)
    running = works.producer.enqueue_many([scene.job(HELD, **said)], label=f"{MARK} label")
    (running_id,) = running_jobs(works, running.id)

    delivery_id, webhook = f"msg_{uuid.uuid4().hex}", f"http://127.0.0.1:9/{MARK}-{number}"
    file_id, attachment_id = f"file-{uuid.uuid4().hex}", str(uuid.uuid4())
    now = datetime.now(UTC)
    with Session(works.engine) as session:
        secret = signing_secret(session, scene.workspace)
        session.add(
            Delivery(
                id=delivery_id, workspace=scene.workspace, event_type="job.succeeded", job_id=failed.job_id,
                url=webhook, body=json.dumps({"text": MARK}), state="delivered", created_at=now,
                next_attempt_at=now, delivered_at=now,
            )
        )  # fmt: skip
        session.add(WebhookEndpoint(workspace=scene.workspace, url=webhook, failures=1, failing_since=now))
        session.add(WebhookSubscription(workspace=scene.workspace, url=webhook, form="openai", created_at=now))
        for id_, purpose in ((file_id, "batch"), (attachment_id, "attachment")):
            content = f"{MARK} content".encode()
            session.add(
                StoredFile(
                    id=id_, workspace=scene.workspace, purpose=purpose, filename=f"{MARK}.jsonl",
                    mime_type="text/plain", size_bytes=len(content), text=f"{MARK} text", created_at=now,
                )
            )  # fmt: skip
            session.add(FileChunk(file_id=id_, position=0, content=content, created_at=now))
        for batch_id, status in ((batch.id, "completed"), (running.id, "in_progress")):
            session.add(
                OpenAIBatch(
                    id=batch_id, workspace=scene.workspace, input_file_id=file_id, endpoint="/v1/chat/completions",
                    completion_window="24h", status=status, batch_metadata={"note": MARK}, total=1, created_at=now,
                    expires_at=now + timedelta(days=1), in_progress_at=now, enqueued_at=now,
                    # No gateway takes it up meanwhile.
                    claimed_until=now + timedelta(days=1), ended_at=now if status == "completed" else None,
                )
            )  # fmt: skip
        session.commit()
        query = select(ThreadMessage).where(
            ThreadMessage.workspace == scene.workspace, ThreadMessage.thread_id == thread_id
        )
        message = session.exec(query.order_by(col(ThreadMessage.position))).first()
        assert message is not None

    workspace, project, assistant = scene.address.split("/")
    names = Names(
        workspace=workspace, project=project, assistant=assistant, environment="production", model=scene.model,
        job_id=failed.job_id, batch_id=batch.id, thread_id=thread_id, message_id=f"msg_{message.id}",
        file_id=file_id, attachment_id=attachment_id, delivery_id=delivery_id, webhook=webhook,
    )  # fmt: skip
    try:
        yield Tenant(
            works=works,
            workspace=workspace,
            signing_secret=secret,
            ended=names,
            running=dataclasses.replace(names, job_id=running_id, batch_id=running.id),
        )
    finally:
        goes_on.set()


def running_jobs(works: Works, batch_id: str) -> list[str]:
    """Return the jobs of a batch that run, once there is one."""

    def found() -> list[str]:
        jobs = [key for key in works.redis.keys("aq:job:*") if works.redis.hget(key, "batch") == batch_id.encode()]
        return [key.decode().removeprefix("aq:job:") for key in jobs if works.redis.hget(key, "state") == b"running"]

    until(found, what="the job runs")
    return found()


def _unlike(value: str) -> str:
    """Return a text of the same form, whose last letters and digits, four at most, are different."""
    match = re.search(r"[0-9A-Za-z]{1,4}$", value)
    assert match is not None
    return value[: match.start()] + match[0].translate(_NEXT)
