"""`assistq run` with assistants that are hosted elsewhere: a CSV runs as with a native one, and no model is needed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import Ended, Installation
from tests.loopback_hosted import AGENT_BASE, KEY, PASSAGE, Fault, LoopbackHosted

AGENT_PATH = f"{AGENT_BASE}/assistants/agent-1/chat/completions"


@pytest.fixture
def hosted() -> Iterator[LoopbackHosted]:
    """The services."""
    with LoopbackHosted() as hosted:
        yield hosted


@pytest.fixture
def shell(tmp_path: Path, hosted: LoopbackHosted) -> Iterator[Installation]:
    """An installation that knows the services, and no OpenAI-compatible provider."""
    settings = {
        "ASSISTQ_LANGDOCK_BASE_URL": hosted.url,
        "ASSISTQ_LANGDOCK_API_KEY": KEY,
        "ASSISTQ_LANGTAIL_BASE_URL": hosted.url,
        "ASSISTQ_LANGTAIL_API_KEY": KEY,
        "ASSISTQ_AGENT_BASE_URL": f"{hosted.url}{AGENT_BASE}",
        "ASSISTQ_AGENT_API_KEY": KEY,
        # One call at a time, so that what arrives has an order.
        "ASSISTQ_PROCESSES": "1",
    }
    with Installation(tmp_path, **settings) as installation:
        yield installation


def rows(**columns: list[str]) -> str:
    """Return a CSV of these columns."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return file.getvalue()


def succeeded(shell: Installation, ended: Ended, outputs: list[str]) -> None:
    """Assert that all rows succeeded with these outputs, and that no model was started."""
    assert ended.code == 0, ended.err
    results = shell.results("rows-results.csv")
    assert [result["error"] for result in results] == [""] * len(outputs)
    assert [result["output"] for result in results] == outputs
    assert not list(shell.data_dir.rglob("*model*"))
    shell.nothing_left()


def bodies(hosted: LoopbackHosted) -> list[Any]:
    return [request.body for request in hosted.requests]


def test_langdock_gets_each_row_with_the_whole_thread_and_its_output_is_checked(
    shell: Installation, hosted: LoopbackHosted
) -> None:
    assistant = shell.file(
        "a.yaml",
        "assistant: demo/p/a\nprovider: langdock\nprovider_assistant: asst_1\nmax_steps: 4\n"
        "template: [{role: user, content: 'On {{ topic }}'}]\n",
    )
    file = shell.file(
        "rows.csv", rows(topic=["a", "b", "b"], thread_id=["", "t", "t"], message=["one", "two", "three"])
    )
    ended = shell.run("run", file, "--assistant", assistant)
    # Langdock keeps no threads: the second row of the thread brings the first one's turn along.
    second_turn = "heard: On b | two | three"
    succeeded(shell, ended, ["heard: On a | one", "heard: On b | two", second_turn])
    assert {request.path for request in hosted.requests} == {"/assistant/v1/chat/completions"}
    assert {request.headers["authorization"] for request in hosted.requests} == {f"Bearer {KEY}"}
    assert {(body["assistantId"], body["maxSteps"]) for body in bodies(hosted)} == {("asst_1", 4)}
    (longest,) = [body["messages"] for body in bodies(hosted) if len(body["messages"]) == 4]
    assert [(message["role"], message["content"]) for message in longest] == [
        ("user", "On b"),
        ("user", "two"),
        ("assistant", "heard: On b | two"),
        ("user", "three"),
    ]

    typed = shell.file(
        "typed.yaml",
        "assistant: demo/p/typed\nprovider: langdock\nprovider_assistant: asst_1\n"
        "template: [{role: user, content: '{{ topic }}'}]\noutput: {type: enum, enum: [good, bad]}\n",
    )
    ended = shell.run("run", shell.file("rows.csv", rows(topic=["x"])), "--assistant", typed)
    succeeded(shell, ended, ["good"])
    assert bodies(hosted)[-1]["output"] == {"type": "enum", "enum": ["good", "bad"]}


def test_langtail_gets_variables_and_keeps_the_thread_that_ours_remembers(
    shell: Installation, hosted: LoopbackHosted
) -> None:
    # The template is the service's: a row needs neither one of ours nor a message.
    assistant = shell.file(
        "a.yaml",
        "assistant: demo/p/a\nprovider: langtail\nprovider_assistant: acme/support/greeter/production\nmodel: gpt-x\n"
        "temperature: 0.5\n",
    )
    heard = "heard: You greet Ann."
    file = shell.file("rows.csv", rows(name=["Ann", "Bob", "Ann"], thread_id=["", "", "t"], message=["", "", "first"]))
    succeeded(
        shell, shell.run("run", file, "--assistant", assistant), [heard, "heard: You greet Bob.", f"{heard} | first"]
    )
    assert {request.path for request in hosted.requests} == {"/acme/support/greeter/production"}
    for body in bodies(hosted):
        assert (body["model"], body["temperature"]) == ("gpt-x", 0.5)
        assert "threadId" not in body
    # Three threads of the service's own; ours knows the name of its one.
    assert len(hosted.threads) == 3

    file = shell.file("rows.csv", rows(name=["Ann"], thread_id=["t"], message=["second"]))
    succeeded(shell, shell.run("run", file, "--assistant", assistant), [f"{heard} | first | second"])
    (thread_id,) = [name for name, said in hosted.threads.items() if len(said) == 4]
    again = bodies(hosted)[-1]
    assert again["threadId"] == thread_id
    # Only what is new is sent to it.
    assert [message["content"] for message in again["messages"]] == ["second"]


def test_an_agent_creates_a_session_stores_in_it_and_its_passages_are_kept(
    shell: Installation, hosted: LoopbackHosted
) -> None:
    assistant = shell.file("a.yaml", "assistant: demo/p/a\nprovider: agent\nprovider_assistant: agent-1\n")
    file = shell.file("rows.csv", rows(thread_id=["t", "t"], message=["first", "second"]))
    ended = shell.run("run", file, "--assistant", assistant)
    succeeded(shell, ended, ["heard: first", "heard: first | second"])
    assert {request.path for request in hosted.requests} == {AGENT_PATH}
    first, second = bodies(hosted)
    ((session_id, said),) = hosted.sessions.items()
    assert len(said) == 4
    assert first["create_session"] is True
    assert "create_session" not in second
    assert second["store_in_session"] == session_id
    assert [message["content"] for message in second["messages"]] == ["second"]
    shown = json.loads(shell.run("threads", "show", "t", "--json").out)
    assert [(each["role"], each["content"]) for each in shown] == [
        ("user", "first"),
        ("assistant", "heard: first"),
        ("user", "second"),
        ("assistant", "heard: first | second"),
    ]
    assert str(PASSAGE["text"]) in (shell.data_dir / "assistq.db").read_bytes().decode(errors="replace")


def test_a_wall_before_a_service_stops_the_run_and_names_what_is_to_be_mended(
    shell: Installation, hosted: LoopbackHosted
) -> None:
    assistant = shell.file("a.yaml", "assistant: demo/p/a\nprovider: langdock\nprovider_assistant: asst_1\n")
    file = shell.file("rows.csv", rows(message=["one"]))
    stopped = shell.run("run", file, "--assistant", assistant, env={"ASSISTQ_LANGDOCK_API_KEY": "wrong-key"})
    assert stopped.code == 4, stopped.err
    assert "stopped: HTTP 401: Invalid API key" in stopped.err
    assert "check ASSISTQ_LANGDOCK_API_KEY." in stopped.err
    hosted.fail(Fault(status=429, body={"message": "slower"}, headers={"Retry-After": "1"}))
    succeeded(shell, shell.run("run", file, "--assistant", assistant), ["heard: one"])


def test_a_service_that_is_not_configured_is_told_before_anything_starts(shell: Installation) -> None:
    assistant = shell.file("a.yaml", "assistant: demo/p/a\nprovider: langdock\nprovider_assistant: asst_1\n")
    file = shell.file("rows.csv", rows(message=["one"]))
    shell.run("run", file, "--assistant", assistant, env={"ASSISTQ_LANGDOCK_API_KEY": ""}).refused(
        "is hosted by langdock, which is not configured", "set ASSISTQ_LANGDOCK_API_KEY"
    )
    assert not shell.socket.exists()
