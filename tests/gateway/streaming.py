"""The least dialect: parts of a job as server-sent events, on the gateway's own parts and a real server."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, Self

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response
from httpx_sse import EventSource

from producer.gateway.calls import Calls
from producer.gateway.http import sse
from producer.gateway.parts import opened, parts_of
from producer.gateway.problem import Problem
from schemas.job import InvokeJob
from schemas.result import JobResult
from schemas.settings import Settings
from schemas.stream import TextPart
from tests.at_work import Works
from tests.processes import until


class Streaming:
    """Serves `POST /` with a job as its body in a thread: text as strings, other parts as they are, then `[DONE]`."""

    def __init__(self, works: Works) -> None:
        url, database_url = works.settings["ASSISTQ_REDIS_URL"], works.settings["ASSISTQ_DATABASE_URL"]
        self._settings = Settings.model_validate({"redis_url": url, "database_url": database_url})
        # How many generators are open, and how many parts each job's client was given.
        self.open = 0
        self.given: dict[str, int] = {}
        app = FastAPI(lifespan=self._lifespan)
        app.add_api_route("/", self._stream, methods=["POST"], response_model=None)
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self._server.started or not self._thread.is_alive(), what="it listens")
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    @property
    def address(self) -> tuple[str, int]:
        """Return host and port."""
        host, port = self._server.servers[0].sockets[0].getsockname()[:2]
        return host, port

    @contextmanager
    def streamed(self, job: InvokeJob) -> Iterator[Iterator[Any]]:
        """Stream the job, and give its events as they come."""
        url = "http://{}:{}/".format(*self.address)
        with (
            httpx.Client(timeout=60, trust_env=False) as client,
            client.stream("POST", url, content=_body(job)) as response,
        ):
            assert response.status_code == 200, response.read()
            yield (
                event.data if event.data == "[DONE]" else json.loads(event.data)
                for event in EventSource(response).iter_sse()
            )

    def unread(self, job: InvokeJob) -> socket.socket:
        """Ask for the job's stream and read nothing of it; the test closes the socket."""
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(self.address)
        body = _body(job)
        head = f"POST / HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        return client

    async def _stream(self, request: Request) -> Response:
        job = InvokeJob.model_validate_json(await request.body())
        return await sse.event_stream(self._told(parts_of(request).calls, job, request))

    async def _told(self, calls: Calls, job: InvokeJob, request: Request) -> AsyncIterator[str]:
        self.open += 1
        told = str(job.custom_id)
        try:
            async with aclosing(calls.stream(job, request)) as parts:
                async for part in parts:
                    self.given[told] = self.given.get(told, 0) + 1
                    text = part.text if isinstance(part, TextPart) else part.model_dump(mode="json")
                    yield sse.event({"result": text} if isinstance(part, JobResult) else text)
        except Problem as problem:
            yield sse.event({"error": problem.code})
            return
        finally:
            self.open -= 1
        yield sse.DONE

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        async with opened(self._settings) as parts:
            app.state.parts = parts
            yield


def _body(job: InvokeJob) -> bytes:
    return job.model_copy(update={"tell": "stream"}).model_dump_json(exclude_defaults=True).encode()
