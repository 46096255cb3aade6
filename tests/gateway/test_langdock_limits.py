"""Langdock's rate limits, rows 81 and 82: by decision 82 the queue waits and refuses nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.at_work import Scene, Works
from tests.loopback_provider import Reply
from tests.processes import until
from tests.served_gateway import ServedGateway

LANES = """
lanes:
  - {model: "*-few", rpm: 20, tpm: 1000000000}
  - {model: "*-small", rpm: 600000, tpm: 6000}
"""
# Half of the tokens of a minute are reserved for a call that may say so much.
MANY_TOKENS = 3000


@pytest.fixture(scope="module")
def works(servers_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Works]:
    """A worker with a lane for each limit."""
    directory = tmp_path_factory.mktemp("limits")
    lanes = directory / "lanes.yaml"
    lanes.write_text(LANES)
    settings = {"ASSISTQ_LANES": str(lanes), "ASSISTQ_PROCESSES": "1", "ASSISTQ_THREADS": "8"}
    with Works(directory, servers_dir=servers_dir, **settings) as works:
        yield works


class Calls:
    """Calls of two keys of one workspace, each of which asks for a model of its own."""

    def __init__(self, gateway: ServedGateway, scene: Scene, pool: ThreadPoolExecutor) -> None:
        self._scene, self._pool = scene, pool
        self._clients = [gateway.client(scene.workspace) for _ in range(2)]

    def __call__(self, key: int, kind: str) -> Future[httpx.Response]:
        address = f"{self._scene.workspace}/tests/{kind}"
        model = f"{self._scene.model}-{kind}"
        self._scene.assistant(assistant=address, model=model, max_tokens=MANY_TOKENS)
        body = {"assistantId": address, "messages": [{"role": "user", "content": "Hi"}]}
        return self._pool.submit(self._clients[key].post, "/assistant/v1/chat/completions", json=body)

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture
def calls(gateway: ServedGateway, scene: Scene) -> Iterator[Calls]:
    with ThreadPoolExecutor(4) as pool:
        calls = Calls(gateway, scene, pool)
        yield calls
        calls.close()


def kinds_asked(scene: Scene) -> list[str]:
    return [body["model"].rpartition("-")[2] for body in scene.asked]


def test_row_81_two_keys_share_a_models_requests_and_who_is_over_them_waits(scene: Scene, calls: Calls) -> None:
    scene.plays(lambda _body, _n: Reply(text="Hi."))
    first = calls(0, "few")
    until(lambda: kinds_asked(scene) == ["few"], what="the first is asked")
    # One every three seconds: the second key waits, another model does not.
    answers = [first, calls(1, "few"), calls(1, "other")]
    assert [answer.result(60).status_code for answer in answers] == [200, 200, 200]
    assert kinds_asked(scene) == ["few", "other", "few"]


def test_row_82_two_keys_share_a_models_tokens_and_who_is_over_them_waits(scene: Scene, calls: Calls) -> None:
    answered = threading.Event()

    def script(body: Any, _n: int) -> Reply:
        return Reply(text="Hi.", hold=answered if body["model"].endswith("-small") else None)

    scene.plays(script)
    # Two of them with their prompts need more than there are; they are reserved until the provider has counted.
    small = [calls(0, "small"), calls(1, "small")]
    until(lambda: "small" in kinds_asked(scene), what="one of them is asked")
    assert calls(1, "other").result(60).status_code == 200
    assert kinds_asked(scene) == ["small", "other"]
    answered.set()
    assert [answer.result(90).status_code for answer in small] == [200, 200]
