"""How much of a thread is sent again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.chat import Message, ToolCall
from worker.flow.history import bounded, unanswered_calls
from worker.limits.estimate import message_tokens


def said(role: str, text: str) -> Message:
    return Message.model_validate({"role": role, "content": text})


def exchange(question: str) -> tuple[Message, ...]:
    return (said("user", question), said("assistant", f"re {question}"))


def asking(call_id: str) -> Message:
    return Message(role="assistant", tool_calls=(ToolCall(id=call_id, name="look", arguments="{}"),))


def answering(call_id: str) -> Message:
    return Message(role="tool", content="seen", tool_call_id=call_id)


def tokens(messages: tuple[Message, ...]) -> int:
    return sum(message_tokens(message) for message in messages)


def test_without_a_bound_all_of_it_is_sent_in_order() -> None:
    turns = (exchange("one"), exchange("two"))

    assert bounded(turns, limit_tokens=None) == (*turns[0], *turns[1])


def test_the_oldest_whole_turn_goes_first() -> None:
    turns = (exchange("one"), exchange("two"), exchange("six"))

    kept = bounded(turns, limit_tokens=tokens((*turns[1], *turns[2])))

    assert kept == (*turns[1], *turns[2])


def test_a_turn_that_does_not_fit_is_not_cut() -> None:
    turns = (exchange("one"),)

    assert bounded(turns, limit_tokens=tokens(turns[0]) - 1) == ()


def test_an_older_turn_is_not_kept_over_a_newer_one_that_was_too_large() -> None:
    turns = (exchange("a"), exchange("b" * 3000), exchange("c"))

    assert bounded(turns, limit_tokens=tokens(turns[2]) + 100) == turns[2]


def test_the_answers_of_a_callers_tools_go_with_the_turn_that_asked_for_them() -> None:
    turns = ((said("user", "?"), asking("c1")), (answering("c1"), said("assistant", "done")), exchange("new"))
    enough_for_the_answers = tokens((*turns[1], *turns[2]))

    kept = bounded(turns, limit_tokens=enough_for_the_answers)

    assert kept == turns[2]


@given(st.lists(st.sampled_from(["plain", "call", "answer"]), max_size=12), st.integers(min_value=1, max_value=400))
def test_a_tool_answer_is_never_kept_without_its_call(kinds: list[str], limit_tokens: int) -> None:
    turns: list[tuple[Message, ...]] = []
    for number, kind in enumerate(kinds):
        if kind == "answer" and turns and turns[-1][-1].tool_calls:
            turns.append((answering(turns[-1][-1].tool_calls[0].id), said("assistant", "ok")))
        elif kind == "call":
            turns.append((said("user", "?"), asking(f"c{number}")))
        else:
            turns.append(exchange(str(number)))

    kept = bounded(tuple(turns), limit_tokens=limit_tokens)

    asked = {call.id for message in kept for call in message.tool_calls}
    assert {message.tool_call_id for message in kept if message.tool_call_id} <= asked
    # Only a newest turn that waits for its answers may be larger, and stands alone then.
    assert tokens(kept) <= limit_tokens or (kept == tuple(turns[-1]) and unanswered_calls(kept))


def test_calls_that_nobody_answered_are_found() -> None:
    assert unanswered_calls((asking("c1"), answering("c1"), asking("c2"))) == {"c2"}
