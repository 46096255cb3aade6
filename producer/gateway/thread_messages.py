"""The messages of a thread, as its owner reads and writes them over HTTP. Threads themselves are in threads.py.

Deleting is soft here too, and what is not found raises Problem 404.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from producer.gateway.problem import Kind, Problem
from producer.gateway.thread_calls import (
    answers_behind,
    live,
    of_thread,
    refuse_to_delete_answer,
    refuse_what_parts_calls,
)
from producer.gateway.threads import Page, Threads, no_cursor
from schemas.chat import Message
from schemas.tables import ThreadMessage

# The locks leave nothing to try again, unless a process of an older release writes without them.
_LOOKS = 3
_MESSAGE_ID_MAX = 2**31 - 1
_MESSAGE_ID = re.compile(r"msg_([1-9][0-9]{0,9})")


def message_id(row: ThreadMessage) -> str:
    """Return what a caller knows the message by."""
    return f"msg_{row.id}"


class ThreadMessages:
    """The messages of the threads that a key sees. Its methods are for threads of the process, not the loop."""

    def __init__(self, threads: Threads, *, has_jobs: Callable[[str, str], bool] = lambda *_: False) -> None:
        """Look at these threads; `has_jobs` says of a workspace and a thread whether jobs are enqueued or run there."""
        self._threads = threads
        self._has_jobs = has_jobs

    def page(
        self, workspace: str, thread_id: str, *, limit: int, after: str | None, newest_first: bool
    ) -> Page[ThreadMessage]:
        """Return messages of the thread in order, or in the opposite one, those behind the message `after`."""
        position = col(ThreadMessage.position)
        with self._threads.session() as session:
            self._threads.found(session, workspace, thread_id)
            query = live(workspace, thread_id)
            if after is not None:
                cursor = _row(session, workspace, thread_id, after)
                if cursor is None:
                    raise no_cursor(after)
                query = query.where(position < cursor.position if newest_first else position > cursor.position)
            order = position.desc() if newest_first else position
            rows = list(session.exec(query.order_by(order).limit(limit + 1)))
        return Page(rows[:limit], has_more=len(rows) > limit)

    def behind(self, workspace: str, thread_id: str, *, position: int, limit: int) -> list[ThreadMessage]:
        """Return messages of the thread in order, those behind the position; none if there is no thread."""
        column = col(ThreadMessage.position)
        with self._threads.session() as session:
            query = live(workspace, thread_id).where(column > position)
            return list(session.exec(query.order_by(column).limit(limit)))

    def message(self, workspace: str, thread_id: str, message_id: str) -> ThreadMessage:
        """Return the message."""
        with self._threads.session() as session:
            return self._found_message(session, workspace, thread_id, message_id)

    def append(self, workspace: str, thread_id: str, message: Message, *, metadata: Any) -> ThreadMessage:
        """Add the message behind all others; a turn that a job settles at the same time stands before or behind it.

        Raises Problem 409 for a message that would part a tool call from its answers.
        """
        if message.tool_calls:
            self._refuse_beside_jobs(workspace, thread_id)
        for _ in range(_LOOKS):
            try:
                return self._append(workspace, thread_id, message, metadata)
            except IntegrityError:
                # Somebody who holds no lock took the position between our look and our insert; the next look sees it.
                continue
        raise Problem(Kind.CONFLICT, f"thread '{thread_id}' is being written to all the time; try again", code="busy")

    def set_metadata(self, workspace: str, thread_id: str, message_id: str, metadata: Any) -> ThreadMessage:
        """Replace the metadata of the message; what it says stays."""
        with self._threads.session() as session:
            row = self._found_message(session, workspace, thread_id, message_id)
            row.message_metadata = metadata
            session.commit()
        return row

    def delete(self, workspace: str, thread_id: str, message_id: str) -> None:
        """Delete the message; one that calls tools takes their answers along.

        Raises Problem 409 for such an answer itself while its call is there, and for calls while jobs run.
        """
        if Message.model_validate(self.message(workspace, thread_id, message_id).message).tool_calls:
            self._refuse_beside_jobs(workspace, thread_id)
        with self._threads.writing() as session:
            self._threads.found(session, workspace, thread_id, lock=True)
            row = self._found_message(session, workspace, thread_id, message_id)
            if row.role == "tool":
                refuse_to_delete_answer(session, row, message_id)
            now = datetime.now(UTC)
            row.deleted_at = now
            for answer in answers_behind(session, row) if Message.model_validate(row.message).tool_calls else ():
                answer.deleted_at = now
            session.commit()

    def _refuse_beside_jobs(self, workspace: str, thread_id: str) -> None:
        """Raise Problem 409 while jobs of the thread have not ended: they may answer its calls, or stand behind.

        Not in the transaction, which must not wait for Redis. A job that is enqueued between the two can still
        part them: workers leave out what has no other half (worker/store/paired.py).
        """
        if self._has_jobs(workspace, thread_id):
            raise Problem(
                Kind.CONFLICT,
                f"thread '{thread_id}' has a job that has not ended; messages that call tools are written and deleted "
                "when none runs: try again then",
                code="thread_is_at_work",
            )

    def _append(self, workspace: str, thread_id: str, message: Message, metadata: Any) -> ThreadMessage:
        with self._threads.writing() as session:
            self._threads.found(session, workspace, thread_id, lock=True)
            refuse_what_parts_calls(session, workspace, thread_id, message)
            last = func.coalesce(func.max(ThreadMessage.position), -1)
            position = 1 + session.exec(select(last).where(*of_thread(workspace, thread_id))).one()
            row = ThreadMessage(
                workspace=workspace,
                thread_id=thread_id,
                position=position,
                job_id="",
                role=message.role,
                content=message.text,
                message=message.model_dump(mode="json", exclude_defaults=True),
                message_metadata=metadata,
                created_at=datetime.now(UTC),
            )
            session.add(row)
            session.commit()
        return row

    def _found_message(self, session: Session, workspace: str, thread_id: str, message_id: str) -> ThreadMessage:
        self._threads.found(session, workspace, thread_id)
        row = _row(session, workspace, thread_id, message_id)
        if row is None or row.deleted_at is not None:
            raise Problem(
                Kind.NOT_FOUND, f"thread '{thread_id}' has no message '{message_id}'", code="message_not_found"
            )
        return row


def _row(session: Session, workspace: str, thread_id: str, message_id: str) -> ThreadMessage | None:
    """Return the message's row, also of one that was deleted."""
    match = _MESSAGE_ID.fullmatch(message_id)
    number = int(match[1]) if match else 0
    if not 0 < number <= _MESSAGE_ID_MAX:
        return None
    row = session.get(ThreadMessage, number)
    return row if row is not None and (row.workspace, row.thread_id) == (workspace, thread_id) else None
