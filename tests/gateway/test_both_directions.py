"""Each dialect of the gateway against our own adapter for the service that speaks it.

A call in the dialect runs an assistant that is hosted elsewhere; elsewhere is this very gateway, in another
workspace, which asks the provider. So each dialect is spoken by our server to our client, and by it to our server.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from producer.gateway.keys import ApiKeys
from schemas.database import engine_for, ensure_tables
from tests.at_work import Scene, Works, said
from tests.loopback_provider import Reply
from tests.served_gateway import ServedGateway

# The workspace of the assistants that the calls reach at last.
BEHIND = "behind"
AGENTS = "/api/v1/compatibility/openai/v1"


@pytest.fixture(scope="module")
def works(servers_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Works]:
    """A worker whose hosted services are all one gateway, at a port that is chosen before it starts."""
    directory = tmp_path_factory.mktemp("both")
    database_url = f"sqlite:///{directory / 'assistq.db'}"
    engine = engine_for(database_url)
    ensure_tables(engine)
    key = ApiKeys(engine).create(BEHIND).text
    engine.dispose()
    with closing(socket.create_server(("127.0.0.1", 0))) as held:
        port = held.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    settings = {
        "ASSISTQ_HTTP_PORT": str(port),
        "ASSISTQ_LANGDOCK_BASE_URL": url,
        "ASSISTQ_LANGDOCK_API_KEY": key,
        "ASSISTQ_LANGTAIL_BASE_URL": url,
        "ASSISTQ_LANGTAIL_API_KEY": key,
        "ASSISTQ_AGENT_BASE_URL": url + AGENTS,
        "ASSISTQ_AGENT_API_KEY": key,
    }
    with Works(directory, servers_dir=servers_dir, database_url=database_url, **settings) as works:
        yield works


@pytest.fixture(scope="module")
def gateway(works: Works) -> Iterator[ServedGateway]:
    """The gateway at that port."""
    with ServedGateway(works, ASSISTQ_HTTP_PORT=works.settings["ASSISTQ_HTTP_PORT"]) as served:
        yield served


class Langtail:
    """Calls in Langtail's dialect; the thread is a header."""

    kind = "langtail"

    def named(self, scene: Scene) -> str:
        return f"{scene.address}/production"

    def call(
        self, client: httpx.Client, address: str, words: str, thread: str | None, *, stream: bool = False
    ) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": words}], "threadId": thread, "stream": stream}
        return client.post(f"/{address}/production", json={k: v for k, v in body.items() if v is not None})

    def text_of(self, answer: httpx.Response) -> str:
        return str(answer.json()["choices"][0]["message"]["content"])

    def thread_of(self, answer: httpx.Response) -> str | None:
        return answer.headers["x-langtail-thread-id"]

    def streamed(self, answer: httpx.Response) -> str:
        chunks = events_of(answer)
        return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


class Agent(Langtail):
    """Calls of an agent; the thread is a session."""

    kind = "agent"

    def named(self, scene: Scene) -> str:
        return scene.address.split("/", 1)[1].replace("/", ":")

    def call(
        self, client: httpx.Client, address: str, words: str, thread: str | None, *, stream: bool = False
    ) -> httpx.Response:
        session = {"create_session": True} if thread is None else {"store_in_session": thread}
        body = {"messages": [{"role": "user", "content": words}], "stream": stream, **session}
        return client.post(
            f"{AGENTS}/assistants/{address.split('/', 1)[1].replace('/', ':')}/chat/completions", json=body
        )

    def thread_of(self, answer: httpx.Response) -> str | None:
        return str(answer.json()["session_id"])


class Langdock(Langtail):
    """Calls in Langdock's dialect, which has no threads."""

    kind = "langdock"

    def named(self, scene: Scene) -> str:
        return scene.address

    def call(
        self, client: httpx.Client, address: str, words: str, thread: str | None, *, stream: bool = False
    ) -> httpx.Response:
        body = {"assistantId": address, "messages": [{"role": "user", "content": words}], "stream": stream}
        return client.post("/assistant/v1/chat/completions", json=body)

    def text_of(self, answer: httpx.Response) -> str:
        (item,) = answer.json()["result"]
        return "".join(part["text"] for part in item["content"] if part["type"] == "text")

    def thread_of(self, answer: httpx.Response) -> str | None:
        return None

    def streamed(self, answer: httpx.Response) -> str:
        return "".join(event.get("delta", "") for event in events_of(answer) if event["type"] == "text-delta")


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """Return the JSON events of a stream, which must end as all of them do."""
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(each) for each in data[:-1]]


DIALECTS = [Langtail(), Agent(), Langdock()]
each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: str(dialect.kind))


class Pair:
    """An assistant in front that is hosted by one behind."""

    def __init__(self, works: Works, dialect: Langtail, **fields: Any) -> None:
        self.behind = Scene(works, workspace=BEHIND)
        self.behind.assistant(instructions="Be brief.")
        self.front = Scene(works)
        named = {"provider": dialect.kind, "provider_assistant": dialect.named(self.behind)}
        self.front.assistant(**{"instructions": "", "model": None, **named, **fields})


@each_dialect
def test_an_answer_goes_through_both_and_a_thread_goes_on(
    works: Works, gateway: ServedGateway, dialect: Langtail
) -> None:
    pair = Pair(works, dialect)
    pair.behind.replies(Reply(text="Blue."), Reply(text="Red."))
    with gateway.client(pair.front.workspace) as client:
        first = dialect.call(client, pair.front.address, "A colour?", None)
        assert first.status_code == 200, first.text
        assert dialect.text_of(first) == "Blue."
        second = dialect.call(client, pair.front.address, "Another?", dialect.thread_of(first))
        assert second.status_code == 200, second.text
        assert dialect.text_of(second) == "Red."
    asked = [message for message in said(pair.behind.asked[1]) if message[0] != "system"]
    earlier = [("user", "A colour?"), ("assistant", "Blue.")] if dialect.thread_of(first) else []
    assert asked == [*earlier, ("user", "Another?")]


@each_dialect
def test_a_stream_goes_through_both(works: Works, gateway: ServedGateway, dialect: Langtail) -> None:
    pair = Pair(works, dialect)
    pair.behind.replies(Reply(text="Blue and green."))
    with gateway.client(pair.front.workspace) as client:
        answer = dialect.call(client, pair.front.address, "Two colours?", None, stream=True)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert dialect.streamed(answer) == "Blue and green."


@each_dialect
def test_what_the_one_behind_refuses_is_an_error_in_front_too(
    works: Works, gateway: ServedGateway, dialect: Langtail
) -> None:
    pair = Pair(works, dialect)
    pair.front.assistant(instructions="", model=None, provider=dialect.kind, provider_assistant=_nobody(dialect))
    with gateway.client(pair.front.workspace) as client:
        answer = dialect.call(client, pair.front.address, "Hello?", None)
    assert 400 <= answer.status_code < 600, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    assert pair.behind.asked == []


def _nobody(dialect: Langtail) -> str:
    return {"langtail": f"{BEHIND}/tests/nobody/production", "agent": "tests:nobody"}.get(
        dialect.kind, f"{BEHIND}/tests/nobody"
    )
