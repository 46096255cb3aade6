"""The tool calls of a thread and their answers, which no write of its owner may part."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, col, select

from producer.gateway.problem import Kind, Problem
from schemas.chat import Message
from schemas.tables import ThreadMessage


def of_thread(workspace: str, thread_id: str) -> tuple[Any, Any]:
    """Return the conditions that a message is of the thread."""
    return col(ThreadMessage.workspace) == workspace, col(ThreadMessage.thread_id) == thread_id


def live(workspace: str, thread_id: str) -> Any:
    """Return the query for the thread's messages that were not deleted."""
    return select(ThreadMessage).where(*of_thread(workspace, thread_id), col(ThreadMessage.deleted_at).is_(None))


def answers_behind(session: Session, row: ThreadMessage) -> list[ThreadMessage]:
    """Return the messages behind an assistant's that answer its tool calls: all up to the next that is none."""
    position = col(ThreadMessage.position)
    behind = live(row.workspace, row.thread_id).where(position > row.position)
    other = session.exec(behind.where(ThreadMessage.role != "tool").order_by(position).limit(1)).first()
    answers = behind if other is None else behind.where(position < other.position)
    return list(session.exec(answers))


def refuse_to_delete_answer(session: Session, row: ThreadMessage, message_id: str) -> None:
    """Raise Problem 409 for an answer whose call is there: no provider takes a call without one."""
    answered = Message.model_validate(row.message).tool_call_id
    position = col(ThreadMessage.position)
    before = live(row.workspace, row.thread_id).where(position < row.position, ThreadMessage.role != "tool")
    calling = session.exec(before.order_by(position.desc()).limit(1)).first()
    calls = Message.model_validate(calling.message).tool_calls if calling is not None else ()
    if answered in {call.id for call in calls}:
        raise Problem(
            Kind.CONFLICT,
            f"message '{message_id}' answers the tool call {answered}; "
            "delete the assistant's message that makes the call, which takes its answers along",
            code="answers_a_tool_call",
        )


def refuse_what_parts_calls(session: Session, workspace: str, thread_id: str, message: Message) -> None:
    """Raise Problem 409 for a message that must not stand at the thread's end."""
    waiting = _open_calls(session, workspace, thread_id)
    if message.role == "tool":
        if message.tool_call_id not in waiting:
            raise Problem(
                Kind.CONFLICT,
                f"thread '{thread_id}' does not wait for an answer to tool call '{message.tool_call_id}'",
                code="no_such_call",
                param="tool_call_id",
            )
    elif waiting:
        raise Problem(
            Kind.CONFLICT,
            f"thread '{thread_id}' waits for the answers to tool calls {', '.join(sorted(waiting))}; "
            "add them as tool messages first",
            code="tool_answers_missing",
        )


def _open_calls(session: Session, workspace: str, thread_id: str) -> set[str]:
    """Return the ids of the tool calls at the thread's end that nobody has answered."""
    newest = live(workspace, thread_id).order_by(col(ThreadMessage.position).desc())
    last = session.exec(newest.where(ThreadMessage.role != "tool").limit(1)).first()
    calls = Message.model_validate(last.message).tool_calls if last is not None else ()
    if last is None or not calls:
        return set()
    answers = [Message.model_validate(row.message) for row in answers_behind(session, last)]
    return {call.id for call in calls} - {answer.tool_call_id for answer in answers}
