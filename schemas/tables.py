"""The SQL tables: what was done. One settling transaction writes a job's rows.

Times are UTC. Ids are strings that a user may have chosen.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Index,
    LargeBinary,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)
from sqlmodel import Field, SQLModel

from schemas.outcome import Status
from schemas.result import JobResult


class UtcDateTime(TypeDecorator[datetime]):
    """A time-zone aware time on every database: SQLite would drop the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Refuse a naive time, which has no place in the tables; store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Return the time as UTC."""
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


class StoredText(TypeDecorator[str]):
    """Text of others, such as a model's: what PostgreSQL cannot store in it becomes U+FFFD."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Replace NUL and lone surrogates."""
        return None if value is None else str(storable(value))


class StoredJson(TypeDecorator[Any]):
    """A JSON value whose texts are others'; they are kept as StoredText keeps them, so that they can be sent again."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:  # noqa: ARG002 - SQLAlchemy's signature
        """Replace NUL and lone surrogates in every text."""
        return storable(value)


def storable(value: Any) -> Any:
    """Return the value with U+FFFD or a question mark for each NUL and lone surrogate in its texts."""
    match value:
        case str():
            return value.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")
        case dict():
            return {storable(key): storable(item) for key, item in value.items()}
        case list():
            return [storable(item) for item in value]
        case _:
            return value


# An index says for which rows it is in words, and so must a query that is to use it: no database
# sees that a parameter is one of them.
_PENDING = "state = 'pending'"
_CLAIMED = "claimed_until IS NOT NULL"
_DELETED = "deleted_at IS NOT NULL"
_OPEN = "ended_at IS NULL"


class AssistantVersion(SQLModel, table=True):
    """One immutable version of an assistant; `fingerprint` tells equal configurations."""

    __tablename__ = "assistant_versions"

    address: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    workspace: str = Field(index=True)
    fingerprint: str
    config: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    created_at: datetime = Field(sa_type=UtcDateTime)


class AssistantEnvironment(SQLModel, table=True):
    """A named pointer to a version, such as `production`."""

    __tablename__ = "assistant_environments"

    address: str = Field(primary_key=True)
    environment: str = Field(primary_key=True)
    version: int
    updated_at: datetime = Field(sa_type=UtcDateTime)


class Job(SQLModel, table=True):
    """A job that ended. Its primary key is what makes an end happen once.

    `request` is the InvokeJob of one that did not succeed, to run it anew; None of one that is not to be recorded.
    Money is in nanos (schemas/money.py).
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("jobs_of_batch", "batch_id", "row"),
        Index("jobs_of_workspace", "workspace", "finished_at", "id"),
    )

    id: str = Field(primary_key=True)
    batch_id: str | None = None
    row: int | None = Field(default=None, sa_type=BigInteger)
    custom_id: str | None = Field(default=None, sa_type=StoredText)
    workspace: str
    assistant: str
    version: int | None = None
    thread_id: str | None = Field(default=None, index=True)
    status: str
    output: Any = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    error_code: str | None = None
    error: str | None = Field(default=None, sa_type=StoredText)
    raw_reply: str | None = Field(default=None, sa_type=StoredText)
    model: str | None = Field(default=None, sa_type=StoredText)
    finish_reason: str | None = Field(default=None, sa_type=StoredText)
    tool_calls: Any = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    choices: Any = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    retrieved: Any = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    requests: int = Field(default=0, sa_type=BigInteger)
    prompt_tokens: int = Field(default=0, sa_type=BigInteger)
    completion_tokens: int = Field(default=0, sa_type=BigInteger)
    cost_nano: int = Field(default=0, sa_type=BigInteger)
    attempts: int = 0
    epoch: int
    variables: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    job_metadata: dict[str, Any] = Field(sa_column=Column("metadata", JSON, nullable=False))
    request: Any = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    enqueued_at: datetime = Field(sa_type=UtcDateTime)
    finished_at: datetime = Field(sa_type=UtcDateTime, index=True)

    def result(self) -> JobResult:
        """Return what the row says of the job's end."""
        values = {
            name: getattr(self, name) for name in JobResult.model_fields if name not in ("job_id", "status", "turn")
        }
        for name in ("tool_calls", "choices", "retrieved"):
            values[name] = tuple(values[name] or ())
        return JobResult(job_id=self.id, status=Status(self.status), **values)


class Thread(SQLModel, table=True):
    """A persistent conversation of one workspace.

    `assistants` are those that the key which began it over HTTP, before its first job, may use; None all, or no key.
    """

    __tablename__ = "threads"
    __table_args__ = (Index("threads_by_age", "workspace", "created_at", "id"),)

    workspace: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    # What hosted assistants call this conversation: provider name -> thread or session id.
    provider_refs: dict[str, str] = Field(sa_column=Column(JSON, nullable=False))
    # What its owner keeps with it, over HTTP. One that was deleted is gone for everybody but pruning; a job that is
    # enqueued after that under its name begins it anew (worker/store/settling.py).
    thread_metadata: Any = Field(default=None, sa_column=Column("metadata", JSON(none_as_null=True)))
    create_log: Any = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    assistants: Any = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    created_at: datetime = Field(sa_type=UtcDateTime)
    deleted_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class ThreadMessage(SQLModel, table=True):
    """One message of a thread; `position` orders them, and only one writer can take a position.

    `content` is its text, for people and searches; `message` is all of it. `job_id` is the job that left it, empty
    for one that its owner wrote over HTTP.
    """

    __tablename__ = "thread_messages"
    __table_args__ = (
        UniqueConstraint("workspace", "thread_id", "position"),
        Index("thread_messages_deleted", "deleted_at", sqlite_where=text(_DELETED), postgresql_where=text(_DELETED)),
    )

    id: int | None = Field(default=None, primary_key=True)
    workspace: str
    thread_id: str
    position: int
    job_id: str = Field(index=True)
    role: str
    content: str = Field(sa_type=StoredText)
    message: dict[str, Any] = Field(sa_column=Column(StoredJson, nullable=False))
    message_metadata: Any = Field(default=None, sa_column=Column("metadata", JSON(none_as_null=True)))
    created_at: datetime = Field(sa_type=UtcDateTime)
    deleted_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class Batch(SQLModel, table=True):
    """A batch that ended, with its final counts. `retry_of` is the batch whose rows it ran anew."""

    __tablename__ = "batches"
    __table_args__ = (Index("batches_of_workspace", "workspace", "created_at", "id"),)

    id: str = Field(primary_key=True)
    workspace: str
    label: str = Field(default="", sa_type=StoredText)
    state: str
    total: int = Field(sa_type=BigInteger)
    counts: dict[str, int] = Field(sa_column=Column(JSON, nullable=False))
    requests: int = Field(sa_type=BigInteger)
    prompt_tokens: int = Field(sa_type=BigInteger)
    completion_tokens: int = Field(sa_type=BigInteger)
    cost_nano: int = Field(default=0, sa_type=BigInteger)
    spend_cap_nano: int | None = Field(default=None, sa_type=BigInteger)
    retry_of: str | None = Field(default=None, index=True)
    webhook: str | None = None
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    created_at: datetime = Field(sa_type=UtcDateTime)
    finished_at: datetime = Field(sa_type=UtcDateTime)


class WebhookSecret(SQLModel, table=True):
    """The secret that a workspace's webhooks are signed with, `whsec_…`."""

    __tablename__ = "webhook_secrets"

    workspace: str = Field(primary_key=True)
    secret: str
    created_at: datetime = Field(sa_type=UtcDateTime)


class RetiredWebhookSecret(SQLModel, table=True):
    """A secret before a rotation, which signs beside the new one until it expires."""

    __tablename__ = "retired_webhook_secrets"

    workspace: str = Field(primary_key=True)
    secret: str = Field(primary_key=True)
    created_at: datetime = Field(sa_type=UtcDateTime)
    expires_at: datetime = Field(sa_type=UtcDateTime)


class WebhookEndpoint(SQLModel, table=True):
    """What is held against a receiver: made at its first failure, gone with its next success.

    `failures` in a row, the first of them at `failing_since` (None if a release that did not know it wrote
    the row). While `open_until` is ahead nothing is sent there; once it is past, one
    delivery at a time is. A disabled one gets nothing until a person enables it.
    """

    __tablename__ = "webhook_endpoints"

    workspace: str = Field(primary_key=True)
    url: str = Field(primary_key=True, sa_type=Text)
    failures: int = 0
    failing_since: datetime | None = Field(default=None, sa_type=UtcDateTime)
    open_until: datetime | None = Field(default=None, sa_type=UtcDateTime, index=True)
    disabled_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    disabled_reason: str | None = Field(default=None, sa_type=Text)


class WebhookSubscription(SQLModel, table=True):
    """An endpoint of a workspace that is told of every batch which was made over OpenAI's API.

    `form` (schemas/webhook.py) is how it is told of batches, of those too that name the endpoint themselves.
    """

    __tablename__ = "webhook_subscriptions"

    workspace: str = Field(primary_key=True)
    url: str = Field(primary_key=True, sa_type=Text)
    form: str
    created_at: datetime = Field(sa_type=UtcDateTime)


class Delivery(SQLModel, table=True):
    """One webhook event on its way to one URL; its id is the `webhook-id` header.

    That of a job that is not to be recorded is `unrecorded`: its body has no content, which the sender adds.
    `claimed_until` is when the lease of the worker that is sending it ends, None while nobody is.
    `attempts` counts every one; the schedule counts from `attempts_at_replay` on, and its time from
    `replayed_at`, or from `created_at` where it was never replayed.
    """

    __tablename__ = "deliveries"
    __table_args__ = (
        Index("deliveries_pending", "next_attempt_at", sqlite_where=text(_PENDING), postgresql_where=text(_PENDING)),
        Index(
            "deliveries_of_endpoint",
            "workspace",
            "url",
            "next_attempt_at",
            sqlite_where=text(_PENDING),
            postgresql_where=text(_PENDING),
        ),
        Index(
            "deliveries_by_age",
            "workspace",
            "url",
            "replayed_at",
            "created_at",
            sqlite_where=text(_PENDING),
            postgresql_where=text(_PENDING),
        ),
        Index("deliveries_of_workspace", "workspace", "created_at", "id"),
        Index("deliveries_claimed", "workspace", "url", sqlite_where=text(_CLAIMED), postgresql_where=text(_CLAIMED)),
    )

    id: str = Field(primary_key=True)
    workspace: str
    event_type: str
    batch_id: str | None = Field(default=None, index=True)
    job_id: str | None = None
    url: str = Field(sa_type=Text)
    body: str = Field(sa_type=Text)
    unrecorded: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    state: str
    attempts: int = 0
    attempts_at_replay: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    next_attempt_at: datetime = Field(sa_type=UtcDateTime)
    claimed_until: datetime | None = Field(default=None, sa_type=UtcDateTime)
    last_status: int | None = None
    last_error: str | None = Field(default=None, sa_type=Text)
    created_at: datetime = Field(sa_type=UtcDateTime)
    replayed_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    delivered_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class ApiKey(SQLModel, table=True):
    """A key to the HTTP gateway. Of its secret only a hash is kept; `hint` is how a person tells it from others.

    `assistants` are the addresses that are shared with it, None all of its workspace. `rpm` bounds its
    requests a minute, None does not.
    """

    __tablename__ = "api_keys"

    id: str = Field(primary_key=True)
    workspace: str = Field(index=True)
    name: str = Field(sa_type=StoredText)
    hint: str
    secret_hash: str
    scopes: list[str] = Field(sa_column=Column(JSON, nullable=False))
    assistants: Any = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    rpm: int | None = None
    created_at: datetime = Field(sa_type=UtcDateTime)
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class StoredFile(SQLModel, table=True):
    """A file that came or goes over HTTP; its bytes are its chunks, in order.

    `text` is what could be read out of an attachment, None for images. A deleted one keeps no chunks.
    `assistants` are those that the key which made it may use, None all of its workspace.
    """

    __tablename__ = "files"

    id: str = Field(primary_key=True)
    workspace: str = Field(index=True)
    purpose: str
    filename: str = Field(sa_type=StoredText)
    mime_type: str = Field(sa_type=StoredText)
    size_bytes: int = Field(sa_type=BigInteger)
    text: str | None = Field(default=None, sa_type=StoredText)
    assistants: Any = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    created_at: datetime = Field(sa_type=UtcDateTime, index=True)
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    deleted_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class FileChunk(SQLModel, table=True):
    """Up to 1 MiB of a stored file, from position 0 on; without a file's row, of an upload that is not whole."""

    __tablename__ = "file_chunks"

    file_id: str = Field(primary_key=True)
    position: int = Field(primary_key=True)
    # Before the content: SQLite would read through that to it.
    created_at: datetime = Field(sa_type=UtcDateTime)
    content: bytes = Field(sa_type=LargeBinary)


class OpenAIBatch(SQLModel, table=True):
    """A batch that was made over OpenAI's API: what a batch of ours, which has the same id, does not say.

    `status` is OpenAI's. Until `enqueued_at` its rows are checked and enqueued, after `ended_at` nothing happens to
    it any more. Meanwhile one gateway at a time works on it: until `claimed_until`, as the `claims`-th one.
    `assistants` are those that the key which made it may use, None all of its workspace.
    `total` is how many rows its file has, None before that is known. `succeeded` and `failed` are of the end; rows
    that were cancelled or expired are neither.
    """

    __tablename__ = "openai_batches"
    __table_args__ = (
        Index("openai_batches_listed", "workspace", "created_at", "id"),
        Index("openai_batches_open", "claimed_until", sqlite_where=text(_OPEN), postgresql_where=text(_OPEN)),
        Index("openai_batches_ended", "ended_at"),
    )

    id: str = Field(primary_key=True)
    workspace: str
    assistants: Any = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    input_file_id: str
    endpoint: str
    completion_window: str
    status: str
    batch_metadata: Any = Field(default=None, sa_column=Column("metadata", StoredJson(none_as_null=True)))
    output_expires_after_s: int | None = None
    errors: Any = Field(default=None, sa_column=Column(StoredJson(none_as_null=True)))
    output_file_id: str | None = None
    error_file_id: str | None = None
    total: int | None = None
    succeeded: int = 0
    failed: int = 0
    prompt_tokens: int = Field(default=0, sa_type=BigInteger)
    completion_tokens: int = Field(default=0, sa_type=BigInteger)
    claims: int = 0
    claimed_until: datetime | None = Field(default=None, sa_type=UtcDateTime)
    created_at: datetime = Field(sa_type=UtcDateTime)
    expires_at: datetime = Field(sa_type=UtcDateTime)
    in_progress_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    enqueued_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    finalizing_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    cancelling_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    ended_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class LangdockAssistant(SQLModel, table=True):
    """What a Langdock client calls a stored assistant, and what it says of it beside what runs (CONTRACT.md row 84)."""

    __tablename__ = "langdock_assistants"

    id: str = Field(primary_key=True)
    workspace: str
    address: str = Field(unique=True)
    details: dict[str, Any] = Field(sa_column=Column(StoredJson, nullable=False))
    created_at: datetime = Field(sa_type=UtcDateTime)
    updated_at: datetime = Field(sa_type=UtcDateTime)
