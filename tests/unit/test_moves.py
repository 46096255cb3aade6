"""What a conversation does next, from the steps in its journal."""

from __future__ import annotations

from typing import Any

from schemas.chat import Message, ToolCall, Usage
from schemas.outcome import Code, Failed, InvalidOutput, Succeeded
from schemas.output import OutputSpec
from worker.flow.moves import Ask, Rules, RunTools, next_move, turn
from worker.queue.steps import AnyStep, ReplyStep, ToolStep

ENUM = OutputSpec(type="enum", enum=("yes", "no"))
LOOK = ToolCall(id="c1", name="look", arguments="{}")
SEE = ToolCall(id="c3", name="see", arguments="{}")
CLICK = ToolCall(id="c2", name="click", arguments="{}")


class OfferedTools:
    """Tools of which `click` is the caller's."""

    definitions = ()

    def is_the_callers(self, name: str) -> bool:
        return name == "click"

    async def run(self, calls: Any, **_: Any) -> Any:
        raise AssertionError("a move runs nothing")


def reply(content: str = "", *calls: ToolCall, finish_reason: str = "stop", refusal: str | None = None) -> ReplyStep:
    return ReplyStep(
        content=content, finish_reason=finish_reason, refusal=refusal, model="m", usage=Usage(), tool_calls=calls
    )


def answered(call: ToolCall, *, position: int = 0) -> ToolStep:
    return ToolStep(position=position, answer=Message(role="tool", content="seen", tool_call_id=call.id))


def move(*steps: AnyStep, output: OutputSpec | None = None, max_steps: int = 10, max_repairs: int = 2) -> Any:
    return next_move(steps, Rules(output=output, max_steps=max_steps, max_repairs=max_repairs), OfferedTools())


def test_a_conversation_begins_by_asking() -> None:
    assert move() == Ask(messages=(), new_messages=())


def test_a_text_reply_without_a_spec_is_the_output() -> None:
    assert move(reply("hello")) == Succeeded(output="hello")


def test_a_reply_that_fits_the_spec_is_the_output() -> None:
    assert move(reply('{"result": "yes"}'), output=ENUM) == Succeeded(output="yes")


def test_tool_calls_are_run_before_anything_else_is_asked() -> None:
    assert move(reply("", LOOK)) == RunTools(reply=0, calls={0: LOOK})


def test_after_the_tools_the_model_is_asked_with_their_answers_in_order() -> None:
    asked = move(reply("", LOOK), answered(LOOK))

    assert isinstance(asked, Ask)
    assert [message.role for message in asked.messages] == ["assistant", "tool"]
    assert asked.messages[0].tool_calls == (LOOK,)
    assert asked.new_messages == (answered(LOOK).answer,)


def test_only_the_calls_without_an_answer_are_run_after_a_crash() -> None:
    both = reply("", LOOK, SEE)

    assert move(both) == RunTools(reply=0, calls={0: LOOK, 1: SEE})
    assert move(both, answered(SEE, position=1)) == RunTools(reply=0, calls={0: LOOK})


def test_answers_are_told_in_the_order_of_the_calls_whichever_came_first() -> None:
    late_first = (reply("", LOOK, SEE), answered(SEE, position=1), answered(LOOK, position=0))

    asked = move(*late_first)

    assert isinstance(asked, Ask)
    assert [message.tool_call_id for message in asked.new_messages] == ["c1", "c3"]
    assert [message.tool_call_id for message in turn((), (*late_first, reply("done")))] == [None, "c1", "c3", None]


def test_a_second_round_is_told_apart_from_the_first() -> None:
    second = move(reply("", LOOK), answered(LOOK), reply("", LOOK, SEE), answered(LOOK, position=0))

    assert second == RunTools(reply=2, calls={1: SEE})


def test_calls_of_the_callers_tools_end_the_job() -> None:
    assert move(reply("wait", CLICK)) == Succeeded(output="wait", tool_calls=(CLICK,))


def test_our_tools_run_before_the_callers_are_handed_over() -> None:
    both = reply("", LOOK, CLICK)

    assert move(both) == RunTools(reply=0, calls={0: LOOK})
    assert move(both, answered(LOOK)) == Succeeded(output=None, tool_calls=(CLICK,))


def test_tools_at_the_step_limit_end_the_job_with_a_code_of_its_own() -> None:
    ended = move(reply("", LOOK), answered(LOOK), reply("", LOOK), max_steps=2)

    assert isinstance(ended, Failed)
    assert ended.code is Code.STEP_LIMIT


def test_an_invalid_output_is_shown_to_the_model_with_its_error() -> None:
    asked = move(reply("maybe"), output=ENUM)

    assert isinstance(asked, Ask)
    assert [message.role for message in asked.messages] == ["assistant", "user"]
    assert "not JSON" in asked.messages[1].text
    assert asked.new_messages == asked.messages[1:]


def test_a_second_repair_sees_the_whole_conversation_and_sends_only_what_is_new() -> None:
    asked = move(reply("maybe"), reply('{"result": "perhaps"}'), output=ENUM)

    assert isinstance(asked, Ask)
    assert [message.role for message in asked.messages] == ["assistant", "user", "assistant", "user"]
    assert asked.new_messages == asked.messages[-1:]


def test_repairs_are_bounded_and_the_last_reply_is_kept() -> None:
    ended = move(reply("a"), reply("b"), reply("c"), output=ENUM)

    assert isinstance(ended, InvalidOutput)
    assert (ended.code, ended.raw_reply) == (Code.OUTPUT_NOT_JSON, "c")


def test_no_repairs_allowed_means_the_first_invalid_output_is_the_end() -> None:
    assert isinstance(move(reply("maybe"), output=ENUM, max_repairs=0), InvalidOutput)


def test_a_reply_that_was_cut_off_is_not_repaired() -> None:
    ended = move(reply('{"result": "y', finish_reason="length"), output=ENUM)

    assert isinstance(ended, InvalidOutput)
    assert ended.code is Code.OUTPUT_CUT_OFF


def test_a_repaired_output_succeeds() -> None:
    assert move(reply("maybe"), reply('{"result": "no"}'), output=ENUM) == Succeeded(output="no")


def test_a_content_filter_and_a_refusal_are_told_apart() -> None:
    filtered, refused = move(reply(finish_reason="content_filter")), move(reply(refusal="I will not"))

    assert isinstance(filtered, Failed)
    assert filtered.code is Code.CONTENT_FILTER
    assert isinstance(refused, Failed)
    assert refused.code is Code.REFUSED_BY_MODEL


def test_a_value_that_a_hosted_assistant_read_itself_is_checked_all_the_same() -> None:
    good = reply("Yes!").model_copy(update={"output": "yes"})
    bad = reply("Perhaps!").model_copy(update={"output": "perhaps"})

    assert move(good, output=ENUM) == Succeeded(output="yes")
    assert isinstance(move(bad, output=ENUM, max_repairs=0), InvalidOutput)


def test_a_threads_turn_has_the_tools_rounds_and_the_answer_but_no_failed_output() -> None:
    question = Message(role="user", content="?")

    said = turn((question,), (reply("", LOOK), answered(LOOK), reply("maybe"), reply('{"result": "no"}')))

    assert [(message.role, message.text) for message in said] == [
        ("user", "?"),
        ("assistant", ""),
        ("tool", "seen"),
        ("assistant", '{"result": "no"}'),
    ]


def test_a_threads_turn_has_what_a_hosted_assistant_exchanged_with_its_tools() -> None:
    exchanged = (reply("", LOOK).message(), answered(LOOK).answer)

    said = turn((), (reply("done").model_copy(update={"exchanged": exchanged}),))

    assert [message.role for message in said] == ["assistant", "tool", "assistant"]
