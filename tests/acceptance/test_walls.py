"""A wall before all rows: the run says so once, keeps every job, and goes on when it is gone."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from tests.command_line import IN_FLIGHT_AT_MOST, SENTIMENT, Ended, Installation, asked_rows
from tests.loopback_provider import LoopbackProvider, Reply, default_reply, status

ROWS = 30
KEY = "sk-a-secret-of-the-test"


def stopped(ended: Ended, *parts: str) -> None:
    assert ended.code == 4, ended.err
    assert ended.err.count("stopped: ") == 1
    message = ended.err[ended.err.index("stopped: ") :]
    for part in (*parts, "Every job is kept: run the same command again to go on"):
        assert part in message
    assert ended.out == ""


def completed(shell: Installation, ended: Ended) -> None:
    assert ended.code == 0, ended.err
    assert [result["status"] for result in shell.results()] == ["succeeded"] * ROWS
    shell.nothing_left()


def test_an_unreachable_provider_and_then_a_refused_key_each_stop_the_run_and_cost_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    with Installation(tmp_path, ASSISTQ_PROVIDER_BASE_URL=url, ASSISTQ_PROVIDER_API_KEY=KEY) as shell:
        command = ("run", shell.reviews(ROWS), "--assistant", shell.sentiment())
        ended = shell.run(*command)
        stopped(ended, f"no connection to {url}", "check ASSISTQ_PROVIDER_BASE_URL and the network")
        shell.nothing_left()

        error = {"error": {"message": f"Incorrect key [/provided] {KEY[:4]}***", "code": "invalid_api_key"}}
        with LoopbackProvider(lambda *_: status(401, error), port=port) as provider:
            ended = shell.run(*command)
            stopped(ended, "HTTP 401: Incorrect key [/provided]", "check ASSISTQ_PROVIDER_API_KEY")
            shell.nothing_left()
            refused = provider.count
            assert 1 <= refused <= IN_FLIGHT_AT_MOST
            assert {request.headers["authorization"] for request in provider.requests} == {f"Bearer {KEY}"}
            assert KEY not in ended.err + "".join(log.read_text("utf-8") for log in (shell.data_dir / "log").iterdir())

            provider.script(default_reply)
            ended = shell.run(*command)
            completed(shell, ended)
            assert f"0 of {ROWS} rows are done" in ended.err
            assert provider.count == refused + ROWS
            assert len(set(asked_rows(provider)[refused:])) == ROWS


def test_an_unknown_model_stops_the_run_and_a_mended_assistant_file_is_not_stopped_by_what_it_left(
    shell: Installation, provider: LoopbackProvider
) -> None:
    def script(body: Any, n: int) -> Reply:
        error = {"error": {"message": "The model `m1` does not exist", "code": "model_not_found"}}
        return status(404, error) if body["model"] == "m1" else default_reply(body, n)

    provider.script(script)
    command = ("run", shell.reviews(ROWS), "--assistant", shell.sentiment())
    stopped(shell.run(*command), "HTTP 404: The model `m1` does not exist", "check `model` in the assistant file")
    assert provider.count <= IN_FLIGHT_AT_MOST

    shell.file("sentiment.yaml", SENTIMENT.replace("m1", "m2"))
    ended = shell.run(*command)
    completed(shell, ended)
    assert "the queue holds other work too" in ended.err
    asked = [request.body["messages"][-1]["content"] for request in provider.requests if request.body["model"] == "m2"]
    assert len(asked) == len(set(asked)) == ROWS
