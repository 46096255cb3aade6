"""Tools on the real worker: run in parallel, answered in order, once, and never the end of a job."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas import Message, names
from tests import mcp_server
from tests.at_work import AT_HOME, Scene, Works, completion, said
from tests.loopback_http import DEADLINE_S, Asked, LoopbackHttp, Told
from tests.loopback_provider import Reply, answers, hang_until
from tests.processes import until

CLIENT_TOOL = {
    "type": "function",
    "name": "ask_person",
    "description": "Ask whoever sits there.",
    "parameters": {"type": "object", "properties": {"question": {"type": "string"}}},
}


@pytest.fixture
def home(works: Works) -> Scene:
    """A scene in the workspace whose tools may reach this machine."""
    return Scene(works, workspace=AT_HOME)


def http_tool(server: LoopbackHttp, name: str = "lookup", **fields: Any) -> dict[str, Any]:
    """Return an HTTP action that gets /<name>?q=<q>."""
    schema = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
    return {"type": "http", "name": name, "url": f"{server.url}/{name}?q={{{{ q }}}}", "parameters": schema, **fields}


def answered(body: Any) -> list[tuple[str, str]]:
    """Return call id and text of each tool message of a request."""
    return [(each["tool_call_id"], each["content"]) for each in body["messages"] if each["role"] == "tool"]


@dataclasses.dataclass
class Span:
    """When a call was in flight, on the monotonic clock."""

    began_s: float
    ended_s: float


class Meeting:
    """A server's answers that come only when as many calls are in flight as were agreed."""

    def __init__(self, parties: int) -> None:
        self._together = threading.Barrier(parties)
        self._second_answered = threading.Event()
        self.spans: list[Span] = []

    def __call__(self, asked: Asked) -> Told:
        began_s = time.monotonic()
        self._together.wait(DEADLINE_S)
        if asked.target.startswith("/first"):
            # The first call is answered last.
            self._second_answered.wait(DEADLINE_S)
        self.spans.append(Span(began_s, time.monotonic()))
        self._second_answered.set()
        return Told(f"answer to {asked.target}".encode())


def test_two_tools_of_one_reply_run_in_parallel_and_their_results_go_back_in_the_order_of_the_calls(
    home: Scene,
) -> None:
    meeting = Meeting(2)
    with LoopbackHttp(meeting) as server:
        tools = [http_tool(server, "first"), http_tool(server, "second")]
        home.assistant(tools=tools)
        calls = [("call_1", "first", {"q": "a b"}), ("call_2", "second", {"q": "ü"})]
        home.replies(completion("Let me look.", calls=calls, usage=(10, 5)), completion("Done.", usage=(20, 7)))
        result = home.succeeds("look", thread_id="parallel")
    # Neither was answered before both were there.
    assert len(meeting.spans) == 2
    assert max(span.began_s for span in meeting.spans) < min(span.ended_s for span in meeting.spans)
    offered, told = home.asked
    assert [tool["function"]["name"] for tool in offered["tools"]] == ["first", "second"]
    assert offered["tools"][0]["function"]["parameters"] == tools[0]["parameters"]
    assert told["messages"][-3]["tool_calls"] == [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for call_id, name, arguments in calls
    ]
    assert answered(told) == [("call_1", "answer to /first?q=a%20b"), ("call_2", "answer to /second?q=%C3%BC")]
    assert (result.output, result.requests, result.prompt_tokens, result.completion_tokens) == ("Done.", 2, 30, 12)
    roles = [message.role for message in home.thread("parallel")]
    assert roles == ["user", "assistant", "tool", "tool", "assistant"]
    called = [event for event in home.works.logged("tool_called") if event["job_id"] == result.job_id]
    assert sorted((event["tool"], event["failed"]) for event in called) == [("first", False), ("second", False)]


def test_whatever_goes_wrong_with_a_tool_is_an_answer_to_the_model_and_the_job_goes_on(home: Scene) -> None:
    over = threading.Event()

    def answer(asked: Asked) -> Told:
        if asked.target.startswith("/hang"):
            over.wait(DEADLINE_S)
        return Told(b"it is broken", status=500) if asked.target.startswith("/broken") else Told(b"fine")

    with LoopbackHttp(answer) as server:
        names = ("fine", "broken", "hang")
        home.assistant(tools=[http_tool(server, name, timeout_s=0.3 if name == "hang" else 10) for name in names])
        calls = [
            ("c1", "broken", {"q": "x"}),
            ("c2", "hang", {"q": "x"}),
            ("c3", "unheard_of", {}),
            ("c4", "fine", {"other": 1}),
            ("c5", "fine", "{not json"),
            ("c6", "fine", {"q": "x"}),
        ]
        home.replies(completion(calls=calls), answers("I see."))
        result = home.succeeds("go")
        over.set()
    assert (result.output, result.attempts, result.requests) == ("I see.", 1, 2)
    told = dict(answered(home.asked[1]))
    assert list(told) == ["c1", "c2", "c3", "c4", "c5", "c6"]
    assert told["c1"] == "HTTP 500: it is broken"
    assert told["c2"] == "hang did not answer within 0.3 s"
    assert "there is no tool 'unheard_of'; the tools are: broken, fine, hang" in told["c3"]
    assert "the arguments do not fit the tool's parameters" in told["c4"]
    assert "the arguments are not JSON" in told["c5"]
    assert told["c6"] == "fine"
    assert len([asked for asked in server.asked if asked.target.startswith("/fine")]) == 1


def test_a_model_that_only_calls_tools_meets_its_step_limit(scene: Scene) -> None:
    scene.assistant(max_steps=3)
    scene.plays(lambda *_: completion(calls=[("c", "nothing", {})], usage=(10, 5)))
    by_assistant, by_job = scene.run("go"), scene.run("go", max_steps=1)
    for result, steps in ((by_assistant, 3), (by_job, 1)):
        assert (result.status, result.error_code, result.requests) == ("failed", "step_limit", steps)
        assert f"after {steps} steps" in (result.error or "")
        # What was bought is charged all the same.
        assert (result.prompt_tokens, result.completion_tokens) == (10 * steps, 5 * steps)
    assert scene.works.row(by_job.job_id).error_code == "step_limit"


def test_a_callers_tool_ends_the_job_and_the_threads_next_job_brings_the_answer(scene: Scene) -> None:
    scene.assistant(tools=[CLIENT_TOOL])
    call = ("call_1", "ask_person", {"question": "Which?"})
    scene.replies(completion("One moment.", calls=[call]), completion("Blue it is."))
    first = scene.succeeds("What colour?", thread_id="t")
    assert first.finish_reason == "tool_calls"
    assert [(each.id, each.name, json.loads(each.arguments)) for each in first.tool_calls] == [call]
    assert first.output == "One moment."
    assert scene.works.row(first.job_id).tool_calls == [each.model_dump() for each in first.tool_calls]

    without = scene.run("And now?", thread_id="t")
    assert (without.status, without.error_code, without.requests) == ("failed", "tool_answers_missing", 0)
    assert "call_1" in (without.error or "")
    assert len(scene.asked) == 1  # nothing was paid for

    answer = Message(role="tool", content="Blue.", tool_call_id="call_1")
    second = scene.succeeds(answer, thread_id="t")
    assert (second.output, second.tool_calls) == ("Blue it is.", ())
    assert said(scene.asked[-1]) == [
        ("system", "Help."),
        ("user", "What colour?"),
        ("assistant", "One moment."),
        ("tool", "Blue."),
    ]
    assert scene.asked[-1]["messages"][2]["tool_calls"][0]["id"] == "call_1"
    assert [role for role, _ in scene.turns("t")] == ["user", "assistant", "tool", "assistant"]


def test_of_a_reply_that_calls_our_tool_and_the_callers_ours_is_run_and_only_the_callers_is_left(home: Scene) -> None:
    with LoopbackHttp(lambda _: Told(b"ours")) as server:
        home.assistant(tools=[http_tool(server), CLIENT_TOOL])
        calls = [("c1", "ask_person", {}), ("c2", "lookup", {"q": "x"})]
        home.replies(completion(calls=calls), completion("Done."))
        first = home.succeeds("go", thread_id="both")
    assert [call.id for call in first.tool_calls] == ["c1"]
    home.succeeds(Message(role="tool", content="theirs", tool_call_id="c1"), thread_id="both")
    assert sorted(answered(home.asked[1])) == [("c1", "theirs"), ("c2", "ours")]
    assert len(server.asked) == 1


def test_a_bounded_history_keeps_a_callers_call_until_it_is_answered_and_then_both_or_neither(scene: Scene) -> None:
    scene.assistant(tools=[CLIENT_TOOL], history_tokens=60)
    scene.replies(completion(calls=[("c1", "ask_person", {})]), answers("Fine."), answers("Still fine."))
    # The turn that waits is larger than the bound, the one that answers it is not.
    scene.succeeds("long " * 100, thread_id="t")
    scene.succeeds(Message(role="tool", content="theirs", tool_call_id="c1"), thread_id="t")
    scene.succeeds("And now?", thread_id="t")
    roles = [[message["role"] for message in body["messages"]] for body in scene.asked]
    assert roles == [["system", "user"], ["system", "user", "assistant", "tool"], ["system", "user"]]


def test_python_tools_are_found_by_their_entry_point_and_told_by_their_signature(scene: Scene) -> None:
    scene.assistant(tools=[{"type": "python", "name": "word_count"}, {"type": "python", "name": "echo"}])
    calls = [("c1", "word_count", {"text": "two words"}), ("c2", "echo", {"text": "hé"}), ("c3", "echo", {"text": 1})]
    scene.replies(completion(calls=calls), answers("ok"))
    scene.succeeds("count")
    count, echo = (tool["function"] for tool in scene.asked[0]["tools"])
    assert count["description"] == "Count the words and characters of a text."
    assert count["parameters"]["properties"]["text"]["description"] == "The text to count in."
    assert (count["parameters"]["required"], echo["name"]) == (["text"], "echo")
    counted, echoed, refused = (text for _, text in answered(scene.asked[1]))
    assert json.loads(counted) == {"words": 2, "characters": 9}
    assert echoed == "hé"
    assert "the arguments do not fit" in refused


def test_the_tools_of_an_mcp_server_are_offered_under_its_name_and_called(scene: Scene) -> None:
    spec = {"type": "mcp", "name": "srv", "command": list(mcp_server.command()), "tools": ["echo", "fail"]}
    scene.assistant(tools=[spec])
    scene.replies(completion(calls=[("c1", "srv_echo", {"text": "hi"}), ("c2", "srv_fail", {})]), answers("ok"))
    scene.succeeds("go")
    assert [tool["function"]["name"] for tool in scene.asked[0]["tools"]] == ["srv_echo", "srv_fail"]
    (_, echoed), (_, failed) = answered(scene.asked[1])
    assert echoed == "hi"
    assert "fail" in failed


def test_a_tool_that_is_not_installed_fails_the_job_before_anything_is_paid_for(scene: Scene) -> None:
    scene.assistant(tools=[{"type": "python", "name": "not_there"}])
    result = scene.run("go")
    assert (result.status, result.error_code, result.requests) == ("failed", "tool_unavailable", 0)
    assert "'not_there' is not installed" in (result.error or "")
    assert scene.asked == []


def test_an_http_action_reaches_this_machine_only_from_a_workspace_that_allows_it(home: Scene, scene: Scene) -> None:
    with LoopbackHttp(lambda _: Told(b"inside")) as server:
        for each in (home, scene):
            each.assistant(tools=[http_tool(server)])
            each.replies(completion(calls=[("c1", "lookup", {"q": "x"})]), answers("ok"))
            each.succeeds("go")
        assert answered(home.asked[1]) == [("c1", "inside")]
        ((_, refused),) = answered(scene.asked[1])
        assert "is not on the public internet" in refused
        assert len(server.asked) == 1


def test_a_name_that_leads_to_this_machine_is_refused_too(scene: Scene) -> None:
    with LoopbackHttp(lambda _: Told(b"inside")) as server:
        tool = http_tool(server) | {"url": f"http://localhost:{server.port}/x?q={{{{ q }}}}"}
        scene.assistant(tools=[tool])
        scene.replies(completion(calls=[("c1", "lookup", {"q": "x"})]), answers("ok"))
        scene.succeeds("go")
        ((_, refused),) = answered(scene.asked[1])
        assert "the host 'localhost' is not on the public internet" in refused
        assert server.asked == []


@pytest.fixture
def mortal(servers_dir: Path, tmp_path: Path) -> Iterator[Works]:
    """A worker of the test's own, to be killed."""
    with Works(tmp_path, servers_dir=servers_dir, ASSISTQ_PROCESSES="1") as works:
        yield works


def test_after_a_kill_no_tool_is_run_and_no_completion_bought_again(mortal: Works) -> None:
    scene = Scene(mortal, workspace=AT_HOME)
    never = threading.Event()
    with LoopbackHttp(lambda _: Told(b"paid")) as server:
        scene.assistant(tools=[http_tool(server, "pay", method="POST"), {"type": "python", "name": "word_count"}])
        calls = [("c1", "pay", {"q": "x"}), ("c2", "word_count", {"text": "a b"})]

        def script(body: Any, n: int) -> Reply:
            if body["messages"][-1]["role"] == "user":
                return completion("Paying.", calls=calls, usage=(10, 5))
            return hang_until(never) if n == 2 else completion("Paid.", usage=(20, 7))

        scene.plays(script)
        job_id = scene.enqueue("pay", thread_id="t")
        # The second completion is under way: the tools' answers are in the journal.
        mortal.provider.wait_for_requests(2)
        mortal.kill()
        mortal.start_again()
        (result,) = mortal.results([job_id])
        never.set()
        assert len(server.asked) == 1
    first, lost, second = scene.asked
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert lost == second
    assert answered(second) == [("c1", "paid"), ("c2", '{"words":2,"characters":3}')]
    # The bill: what was answered, once each.
    assert (result.output, result.requests) == ("Paid.", 2)
    assert (result.prompt_tokens, result.completion_tokens) == (30, 12)
    assert [role for role, _ in scene.turns("t")] == ["user", "assistant", "tool", "tool", "assistant"]
    (started_again,) = [event for event in mortal.logged("job_started") if event["replayed_steps"]]
    assert started_again["replayed_steps"] == 3


def test_a_kill_while_tools_run_repeats_only_the_call_that_no_answer_came_of_and_under_the_same_key(
    mortal: Works,
) -> None:
    scene = Scene(mortal, workspace=AT_HOME)
    never = threading.Event()
    asked_for: list[str] = []

    def answer(asked: Asked) -> Told:
        asked_for.append(asked.target)
        if asked.target == "/slow?q=x" and asked_for.count(asked.target) == 1:
            never.wait(DEADLINE_S)
        return Told(b"ok")

    def keys(target: str) -> list[str | None]:
        return [each.headers.get("idempotency-key") for each in server.asked if each.target == target]

    with LoopbackHttp(answer) as server:
        scene.assistant(tools=[http_tool(server, "slow"), http_tool(server, "pay", method="POST")])
        calls = [("c1", "slow", {"q": "x"}), ("c2", "pay", {"q": "y"})]
        scene.replies(completion(calls=calls), completion("Done."))
        job_id = scene.enqueue("go")
        until(lambda: mortal.redis.llen(names.journal(job_id)) == 2, what="one of the two answers is in the journal")
        until(lambda: keys("/slow?q=x"), what="the slow one is called")
        mortal.kill()
        mortal.start_again()
        (result,) = mortal.results([job_id])
        never.set()
        assert keys("/pay?q=y") == [f"{job_id}.0.1"]
        assert keys("/slow?q=x") == [f"{job_id}.0.0"] * 2
    assert (result.output, result.requests) == ("Done.", 2)
    assert answered(scene.asked[1]) == [("c1", "ok"), ("c2", "ok")]
