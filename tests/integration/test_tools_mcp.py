"""MCP servers, real ones: over stdio and streamable HTTP, shared, lost, found again, closed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from schemas.chat import ToolCall
from schemas.tool import McpServer
from tests import mcp_server
from tests.processes import is_alive, until
from worker.net.guard import resolve_by_system
from worker.tools.base import Tools, ToolsUnavailable
from worker.tools.toolbox import WorkerToolbox

DEADLINE_S = 20.0
ENVIRONMENT = {"ASSISTQ_SECRET_KEY": "hush-hush", "ASSISTQ_REDIS_URL": "redis://:password@nowhere.test"}


def spec(**fields: Any) -> McpServer:
    return McpServer.model_validate({"type": "mcp", "name": "srv", "timeout_s": DEADLINE_S, **fields})


def stdio(**fields: Any) -> McpServer:
    return spec(command=mcp_server.command(), **fields)


def with_toolbox(use: Callable[[WorkerToolbox], Awaitable[Any]], *, private: bool = True) -> Any:
    """Run with a toolbox, and close it."""

    async def resolve(host: str) -> Sequence[str]:
        return ["10.0.0.1"] if host == "internal.test" else await resolve_by_system(host)

    async def main() -> Any:
        toolbox = WorkerToolbox(
            environment=ENVIRONMENT,
            allows_private=lambda _workspace: private,
            on_crash=lambda _name, error: pytest.fail(repr(error)),
            resolve=resolve,
        )
        try:
            return await use(toolbox)
        finally:
            await toolbox.aclose()

    return asyncio.run(main())


async def call(tools: Tools, name: str, arguments: str = "{}") -> str:
    (answer,) = await tools.run([ToolCall(id="1", name=f"srv_{name}", arguments=arguments)])
    return answer.content


async def called(toolbox: WorkerToolbox, server: McpServer, name: str, *, workspace: str = "demo") -> str:
    """Open the server as one job does, and call one tool."""
    async with toolbox.open([server], workspace=workspace) as tools:
        return await call(tools, name)


def test_a_server_offers_all_its_tools_under_names_that_a_model_may_be_told() -> None:
    async def use(toolbox: WorkerToolbox) -> list[str]:
        async with toolbox.open([stdio()], workspace="demo") as tools:
            return [definition.name for definition in tools.definitions]

    offered = with_toolbox(use)

    assert "srv_echo" in offered
    assert "srv_dotted_name" in offered


def test_a_spec_lets_through_the_tools_that_it_lists_in_its_order() -> None:
    async def use(toolbox: WorkerToolbox) -> list[str]:
        async with toolbox.open([stdio(tools=["dotted.name", "echo"])], workspace="demo") as tools:
            assert await call(tools, "dotted_name") == "dotted"
            return [definition.name for definition in tools.definitions]

    assert with_toolbox(use) == ["srv_dotted_name", "srv_echo"]


def test_a_tool_that_the_server_does_not_have_is_a_mistake_of_configuration() -> None:
    with pytest.raises(ToolsUnavailable, match=r"has no tool 'ecko'; it has: .*echo") as unavailable:
        with_toolbox(lambda toolbox: called(toolbox, stdio(tools=["ecko"]), "ecko"))

    assert unavailable.value.configuration


def test_structured_content_is_json_and_a_picture_is_only_named() -> None:
    async def use(toolbox: WorkerToolbox) -> tuple[str, str]:
        async with toolbox.open([stdio()], workspace="demo") as tools:
            return await call(tools, "environment"), await call(tools, "picture")

    environment, picture = with_toolbox(use)

    assert '"PATH"' in environment
    assert picture == "[image, which is no text]"


def test_a_server_that_we_start_sees_the_specs_environment_and_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSISTQ_PROVIDER_API_KEY", "sk-ours")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ours-too")
    server = stdio(env={"REGION": "eu", "TOKEN": "t {{ secret }}"}, secret="key")

    environment = with_toolbox(lambda toolbox: called(toolbox, server, "environment"))

    assert '"REGION": "eu"' in environment
    assert '"TOKEN": "t [secret]"' in environment
    assert "ASSISTQ" not in environment
    assert "ours" not in environment


def test_jobs_share_a_session_and_workspaces_do_not() -> None:
    async def use(toolbox: WorkerToolbox) -> tuple[list[str], str]:
        same = await asyncio.gather(*(called(toolbox, stdio(), "pid") for _ in range(5)))
        return same, await called(toolbox, stdio(), "pid", workspace="other")

    same, other = with_toolbox(use)

    assert len(set(same)) == 1
    assert other not in same


def test_a_server_that_dies_in_a_call_is_an_answer_and_the_next_call_finds_it_again() -> None:
    async def use(toolbox: WorkerToolbox) -> tuple[str, str, str]:
        async with toolbox.open([stdio()], workspace="demo") as tools:
            before = await call(tools, "pid")
            died = await call(tools, "die")
            return before, died, await call(tools, "pid")

    before, died, after = with_toolbox(use)

    assert "ended the session" in died
    assert after.isdigit()
    assert before != after


def test_a_server_that_died_between_two_jobs_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.tools.mcp_servers.LISTING_FRESH_S", 0.0)

    async def use(toolbox: WorkerToolbox) -> tuple[str, str]:
        before = await called(toolbox, stdio(), "pid")
        os.kill(int(before), signal.SIGKILL)
        return before, await called(toolbox, stdio(), "pid")

    before, after = with_toolbox(use)

    assert after.isdigit()
    assert before != after


def test_a_call_that_ran_out_of_time_does_not_disturb_the_next() -> None:
    async def use(toolbox: WorkerToolbox) -> tuple[str, str, str]:
        async with toolbox.open([stdio(timeout_s=3)], workspace="demo") as tools:
            return await call(tools, "hang"), await call(tools, "pid"), await call(tools, "echo", '{"text": "a"}')

    hung, pid, echoed = with_toolbox(use)

    assert "did not answer" in hung
    assert pid.isdigit()
    assert echoed == "a"


def test_closing_the_toolbox_ends_the_servers() -> None:
    pid = int(with_toolbox(lambda toolbox: called(toolbox, stdio(), "pid")))

    until(lambda: not is_alive(pid), what="the server has ended")


def test_a_server_that_no_job_uses_any_more_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.tools.mcp_servers.IDLE_S", 0.0)

    async def use(toolbox: WorkerToolbox) -> int:
        pid = int(await called(toolbox, stdio(), "pid"))
        await asyncio.to_thread(until, lambda: not is_alive(pid), what="the server has ended")
        return pid

    with_toolbox(use)


def test_a_command_that_there_is_not_is_a_mistake_of_configuration() -> None:
    with pytest.raises(ToolsUnavailable, match="there is no command 'no-such-command'") as unavailable:
        with_toolbox(lambda toolbox: called(toolbox, spec(command=["no-such-command"]), "echo"))

    assert unavailable.value.configuration


def test_a_server_that_ends_at_once_is_told_with_its_last_words() -> None:
    server = spec(command=[sys.executable, "-c", "raise SystemExit('the database is missing')"])

    with pytest.raises(ToolsUnavailable, match="it said: the database is missing") as unavailable:
        with_toolbox(lambda toolbox: called(toolbox, server, "echo"))

    assert not unavailable.value.configuration


def test_jobs_that_wait_for_a_silent_server_fail_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.tools.mcp_servers.OPEN_TIMEOUT_S", 1.0)
    server = spec(command=["sleep", "60"])

    async def use(toolbox: WorkerToolbox) -> list[Any]:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        jobs = [called(toolbox, server, "echo") for _ in range(20)]
        told = await asyncio.gather(*jobs, return_exceptions=True)
        # One after the other they would take 20 s and more.
        assert loop.time() - began_s < 15
        return told

    told = with_toolbox(use)

    assert all(isinstance(each, ToolsUnavailable) and "did not answer within 1 s" in str(each) for each in told)


def test_over_http_the_secret_goes_into_the_header_that_asks_for_it() -> None:
    with mcp_server.over_http(key="hush-hush") as served:
        server = spec(url=served.url, headers={"X-Key": "{{ secret }}"}, secret="key")
        pid = with_toolbox(lambda toolbox: called(toolbox, server, "pid"))

    assert int(pid) == os.getpid()
    assert {headers.get("x-key") for headers in served.headers} == {"hush-hush"}


def test_a_server_that_refuses_the_key_is_a_mistake_of_configuration() -> None:
    with (
        mcp_server.over_http(key="another") as served,
        pytest.raises(ToolsUnavailable, match="HTTP 401") as unavailable,
    ):
        with_toolbox(lambda toolbox: called(toolbox, spec(url=served.url), "pid"))

    assert unavailable.value.configuration


def test_a_server_that_is_not_there_may_come_back() -> None:
    with pytest.raises(ToolsUnavailable) as unavailable:
        with_toolbox(lambda toolbox: called(toolbox, spec(url="http://127.0.0.1:1/mcp"), "pid"))

    assert not unavailable.value.configuration


def test_a_server_that_was_restarted_is_found_again() -> None:
    async def use(toolbox: WorkerToolbox) -> list[str]:
        told = []
        with mcp_server.over_http() as served:
            server = spec(url=served.url)
            async with toolbox.open([server], workspace="demo") as tools:
                told.append(await call(tools, "echo", '{"text": "before"}'))
        port = int(served.url.split(":")[2].split("/")[0])
        async with toolbox.open([server], workspace="demo") as tools:
            told.append(await call(tools, "echo", '{"text": "away"}'))
        with mcp_server.over_http(port=port):
            async with toolbox.open([server], workspace="demo") as tools:
                told.append(await call(tools, "echo", '{"text": "after"}'))
        return told

    before, away, after = with_toolbox(use)

    assert (before, after) == ("before", "after")
    assert "cannot be used" in away


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{port}/mcp", "http://2130706433:{port}/mcp", "http://internal.test/"]
)
def test_a_server_at_a_private_address_is_out_of_reach_unless_the_workspace_allows_it(url: str) -> None:
    with mcp_server.over_http() as served:
        port = served.url.split(":")[2].split("/")[0]
        server = spec(url=url.format(port=port))
        with pytest.raises(ToolsUnavailable, match="not on the public internet") as unavailable:
            with_toolbox(lambda toolbox: called(toolbox, server, "pid"), private=False)

    assert unavailable.value.configuration
    assert not served.headers


def test_a_server_ends_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    # It does not look at its stdin's end, so nothing but the leash ends it.
    program = tmp_path / "job.py"
    program.write_text(
        textwrap.dedent("""
            import asyncio, sys
            from schemas.chat import ToolCall
            from schemas.tool import McpServer
            from worker.tools.toolbox import WorkerToolbox

            async def main():
                toolbox = WorkerToolbox(environment={}, allows_private=lambda _: True, on_crash=print)
                spec = McpServer(type="mcp", name="srv", command=tuple(sys.argv[1:]))
                async with toolbox.open([spec], workspace="demo") as tools:
                    (answer,) = await tools.run([ToolCall(id="1", name="srv_pid", arguments="")])
                    print(answer.content, flush=True)
                    await asyncio.Event().wait()

            asyncio.run(main())
        """)
    )
    root = str(Path(__file__).parents[2])
    worker = subprocess.Popen(
        [sys.executable, str(program), *mcp_server.command("--deaf")],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert worker.stdout is not None
        server = int(worker.stdout.readline())
        assert is_alive(server)
    finally:
        worker.kill()
        worker.communicate()

    try:
        until(lambda: not is_alive(server), what="the server has ended")
    finally:
        if is_alive(server):
            os.kill(server, signal.SIGKILL)


def test_a_toolbox_on_the_loop_of_another_thread_works_as_well() -> None:
    # Dramatiq runs its event loop beside the main thread.
    told: list[str] = []
    thread = threading.Thread(target=lambda: told.append(with_toolbox(lambda toolbox: called(toolbox, stdio(), "pid"))))
    thread.start()
    thread.join(DEADLINE_S)

    assert told[0].isdigit()
