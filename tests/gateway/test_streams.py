"""Streaming: tokens come as the provider says them, and whoever breaks off harms nobody else."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from schemas import names
from tests.at_work import AT_HOME, Scene, Works, completion, said
from tests.gateway.streaming import Streaming
from tests.loopback_http import Asked, LoopbackHttp, Told
from tests.loopback_provider import Reply, answers, chunk, streams
from tests.processes import alive_in_group, until

LOOKUP = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}


@pytest.fixture
def own_works(tmp_path: Path, servers_dir: Path) -> Iterator[Works]:
    """A worker of one process that the test may kill, and its queue."""
    with Works(tmp_path, servers_dir=servers_dir, ASSISTQ_PROCESSES="1") as works:
        yield works


@pytest.fixture(scope="module")
def streaming(works: Works) -> Iterator[Streaming]:
    with Streaming(works) as streaming:
        yield streaming


@pytest.fixture
def own_streaming(own_works: Works) -> Iterator[Streaming]:
    with Streaming(own_works) as streaming:
        yield streaming


def texts(events: list[Any]) -> str:
    return "".join(event for event in events if isinstance(event, str) and event != "[DONE]")


def kinds(events: list[Any]) -> list[str]:
    """Return what was told, texts that follow each other as one."""
    found: list[str] = []
    for event in events:
        kind = ("done" if event == "[DONE]" else "text") if isinstance(event, str) else event.get("type", "result")
        if not (kind == "text" and found[-1:] == ["text"]):
            found.append(kind)
    return found


def another_takes_over(works: Works) -> None:
    """Start another worker and kill -9 the first, whose leases are over at once."""
    killed = works.process_group
    works.start()
    os.killpg(killed, signal.SIGKILL)
    until(lambda: not alive_in_group(killed), what="it is dead")
    for job_id in cast("list[bytes]", works.redis.zrange(names.LEASES, 0, -1)):
        works.redis.zadd(names.LEASES, {job_id: 1})


def test_tokens_arrive_before_the_provider_has_finished_and_the_next_turn_knows_them(
    streaming: Streaming, scene: Scene
) -> None:
    first_was_read = threading.Event()
    scene.assistant()
    scene.replies(streams("Hel", first_was_read, "lo", " you."), answers("Again."))
    with streaming.streamed(scene.job("Hi", thread_id="t1")) as events:
        assert next(events) == "Hel"
        first_was_read.set()
        rest = list(events)
    assert texts(rest) == "lo you."
    assert kinds(rest) == ["text", "step_ended", "result", "done"]
    assert rest[-2]["result"]["output"] == "Hello you."
    assert (rest[-2]["result"]["prompt_tokens"], rest[-2]["result"]["completion_tokens"]) == (10, 5)
    assert scene.asked[0]["stream"] is True
    assert scene.asked[0]["stream_options"] == {"include_usage": True}
    scene.succeeds("And?", thread_id="t1")
    assert said(scene.asked[1])[1:] == [("user", "Hi"), ("assistant", "Hello you."), ("user", "And?")]
    assert "stream" not in scene.asked[1]


def test_rounds_of_tools_are_told_as_they_come(streaming: Streaming, works: Works) -> None:
    scene = Scene(works, workspace=AT_HOME)
    scene.assistant(tools=[{"type": "python", "name": "echo"}])
    call = {"index": 0, "id": "c1", "function": {"name": "echo", "arguments": '{"te'}}
    more = {"index": 0, "function": {"arguments": 'xt": "hi"}'}}
    ended = chunk(finish_reason="tool_calls")
    scene.replies(Reply(events=(chunk("Hm."), chunk(tool_calls=[call]), chunk(tool_calls=[more]), ended, "[DONE]")),
                  completion("Done."))  # fmt: skip
    with streaming.streamed(scene.job("Say hi")) as events:
        told = list(events)
    assert kinds([e for e in told if not (isinstance(e, dict) and e.get("type") == "tool_call")]) == [
        "text", "step_ended", "tool_result", "text", "step_ended", "result", "done",
    ]  # fmt: skip
    pieces = [event for event in told if isinstance(event, dict) and event.get("type") == "tool_call"]
    assert (pieces[0]["id"], pieces[0]["name"]) == ("c1", "echo")
    assert "".join(piece["arguments"] for piece in pieces) == '{"text": "hi"}'
    assert texts(told) == "Hm.Done."


def test_an_output_that_may_be_repaired_is_told_once_it_fits(streaming: Streaming, scene: Scene) -> None:
    scene.assistant(output={"type": "enum", "enum": ["yes", "no"]}, max_repairs=1)
    scene.replies(answers("maybe"), answers('{"result": "no"}'))
    with streaming.streamed(scene.job("Well?")) as events:
        assert texts(list(events)) == "no"


def test_a_provider_that_breaks_off_ends_the_stream_at_once_and_is_not_asked_again(
    streaming: Streaming, scene: Scene
) -> None:
    scene.assistant()
    scene.replies(Reply(events=(chunk("Hel"), {"error": {"message": "overloaded", "type": "server_error"}})))
    with streaming.streamed(scene.job("Hi", thread_id="t1")) as events:
        told = list(events)
    assert texts(told) == "Hel"
    assert "error" in told[-1]
    assert len(scene.asked) == 1
    assert not scene.turns("t1")


def test_a_worker_that_is_killed_in_mid_stream_ends_it_with_an_error_and_the_thread_goes_on(
    own_works: Works, own_streaming: Streaming
) -> None:
    scene, never = Scene(own_works), threading.Event()
    scene.assistant()
    scene.plays(lambda _body, n: streams("Hel", never) if n == 1 else answers("Fine."))
    with own_streaming.streamed(scene.job("Hi", thread_id="t1")) as events:
        assert next(events) == "Hel"
        another_takes_over(own_works)
        assert list(events) == [{"error": "reply_lost"}]
    until(lambda: own_streaming.open == 0, what="its generator is closed")
    never.set()
    assert scene.succeeds("Still there?", thread_id="t1").output == "Fine."


def test_what_a_killed_worker_had_journaled_is_no_loss_and_the_stream_goes_on(
    own_works: Works, own_streaming: Streaming
) -> None:
    scene, asked, go = Scene(own_works, workspace=AT_HOME), threading.Event(), threading.Event()

    def look_up(_: Asked) -> Told:
        asked.set()
        go.wait(30)
        return Told(b"sunny")

    with LoopbackHttp(look_up) as server:
        url = f"{server.url}/?q={{{{ q }}}}"
        scene.assistant(tools=[{"type": "http", "name": "look", "url": url, "parameters": LOOKUP}])
        scene.replies(completion("Hm.", calls=[("c1", "look", {"q": "weather"})]), streams("It is ", "sunny."))
        with own_streaming.streamed(scene.job("Weather?")) as events:
            assert next(events) == "Hm."
            assert asked.wait(30)
            another_takes_over(own_works)
            go.set()
            told = ["Hm.", *events]
    assert kinds(told) == ["text", "tool_call", "step_ended", "tool_result", "text", "step_ended", "result", "done"]
    assert texts(told) == "Hm.It is sunny."


def test_what_cannot_be_told_while_redis_is_full_comes_with_the_result(
    own_works: Works, own_streaming: Streaming
) -> None:
    scene, full = Scene(own_works), threading.Event()
    scene.assistant()
    scene.replies(streams("Hel", full, "lo", " you."))
    with own_streaming.streamed(scene.job("Hi", thread_id="t1")) as events:
        assert next(events) == "Hel"
        with own_works.queue.memory_full():
            full.set()
            told = list(events)
    assert texts(told) == "lo you."
    assert kinds(told) == ["text", "result", "done"]
    assert scene.turns("t1") == [("user", "Hi"), ("assistant", "Hello you.")]


def test_a_redis_that_is_started_again_in_mid_stream_costs_no_word(own_works: Works, own_streaming: Streaming) -> None:
    scene, back = Scene(own_works), threading.Event()
    scene.assistant()
    scene.replies(streams("Hel", back, "lo", " you."))
    with own_streaming.streamed(scene.job("Hi")) as events:
        assert next(events) == "Hel"
        own_works.kill_queue()
        own_works.start_queue_again()
        back.set()
        told = list(events)
    assert texts(told) == "lo you."
    assert told[-1] == "[DONE]"


def test_a_client_that_does_not_read_holds_up_nobody_and_gets_all_of_it_later(
    streaming: Streaming, works: Works
) -> None:
    slow, fast = Scene(works), Scene(works)
    large = [f"{number:06}" * 20_000 for number in range(250)]
    slow.assistant()
    fast.assistant()
    slow.replies(streams(*large))
    fast.replies(streams("Hel", "lo"))
    client = streaming.unread(slow.job("Much", id="slow", custom_id="slow"))
    try:
        until(lambda: works.redis.exists(names.result("slow")), what="the job has ended", timeout_s=60)
        with streaming.streamed(fast.job("Hi")) as events:
            assert texts(list(events)) == "Hello"
        # It was given no more than lies in buffers between it and us.
        assert streaming.given["slow"] < int(works.redis.xlen(names.parts("slow")))
        received = bytearray()
        while piece := client.recv(1 << 20):
            received += piece
    finally:
        client.close()
    found = b"".join(received.split(b"\r\n"))
    for text in (large[0], large[-1]):
        assert text[:6_000].encode() in found
    assert found.count(b"[DONE]") == 1


@pytest.mark.parametrize("reads", [True, False])
def test_a_client_that_vanishes_leaves_no_subscription_and_no_generator(
    streaming: Streaming, scene: Scene, works: Works, reads: bool
) -> None:
    never = threading.Event()
    scene.assistant()
    scene.replies(streams("Hel", never, "lo"))
    job_id = f"vanished-{reads}"
    channel = names.done_channel(job_id)
    job = scene.job("Hi", id=job_id, custom_id=job_id)
    client = streaming.unread(job)
    until(lambda: streaming.given.get(job_id), what="the first token is on its way")
    assert works.redis.pubsub_channels(channel)
    if reads:
        assert client.recv(100)
    client.close()
    until(lambda: not works.redis.pubsub_channels(channel), what="nobody listens any more")
    until(lambda: streaming.open == 0, what="its generator is closed")
    never.set()


def test_of_a_job_that_is_not_to_be_recorded_the_parts_go_with_its_result(
    streaming: Streaming, scene: Scene, works: Works
) -> None:
    scene.assistant()
    scene.plays(lambda _body, _n: streams("Hello"))
    for job_id, ttl_s in (("kept", names.PARTS_TTL_S), ("unkept", names.UNRECORDED_RESULT_TTL_S)):
        with streaming.streamed(scene.job("Hi", id=job_id, doNotRecord=job_id == "unkept")) as events:
            assert texts(list(events)) == "Hello"
        assert 0 < works.redis.ttl(names.parts(job_id)) <= ttl_s
    assert scene.run("Hi", id="whole").succeeded
    assert not works.redis.exists(names.parts("whole"))
