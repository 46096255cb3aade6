"""What the two transports of a provider's client do alike: ours, and httpx's own, which serves behind a proxy.

What matters is which calls were certainly not sent (Unreachable) and which may have been (ReplyLost).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import httpx
import pytest

from worker.providers.base import ChatRequest
from worker.providers.errors import ProviderError, ReplyLost, RequestRefused, Unreachable
from worker.providers.exchange import Answer, http_client, post

pytestmark = pytest.mark.anyio

ASKED = ChatRequest(model="m", messages=())
# More than the kernel keeps for a reader that does not read.
LARGE_BYTES = 16 * 1024 * 1024
DEADLINE_S = 5.0
SOON_S = 0.05
# Of a time-out that must not apply: nothing can be done in it.
NO_TIME_S = 1e-9


class Connection:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def head(self) -> str:
        """Read the head of a request."""
        return (await self._reader.readuntil(b"\r\n\r\n")).decode()

    async def request(self) -> tuple[str, bytes]:
        """Read a request whole."""
        head = await self.head()
        length = next(line for line in head.lower().split("\r\n") if line.startswith("content-length:"))
        return head, await self._reader.readexactly(int(length.partition(":")[2]))

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)

    def answer(self, body: bytes = b"{}", *, status: str = "200 OK") -> None:
        """Send a whole answer."""
        self.send(f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)

    async def closed(self) -> None:
        """Return once the client has closed its end; what it still sends is read away."""
        try:
            while await self._reader.read(65536):
                pass
        except ConnectionError:
            return

    def reset(self) -> None:
        """Cut the connection: the client gets an RST instead of an end."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        """End the connection."""
        self._writer.close()


Serve = Callable[[Connection], Awaitable[None]]


@asynccontextmanager
async def server(*scripts: Serve) -> AsyncIterator[str]:
    """Serve one connection with each script, the last one with all that follow; yields the base URL.

    A connection ends with its script; the server's end waits for all scripts.
    """
    left, running = list(scripts), set[asyncio.Task[Any]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.add(this := asyncio.current_task())  # type: ignore[arg-type]
        assert this is not None
        connection = Connection(reader, writer)
        try:
            await (left.pop(0) if len(left) > 1 else left[0])(connection)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went away
        finally:
            connection.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        await asyncio.wait_for(asyncio.gather(*running), DEADLINE_S)


async def answers(connection: Connection) -> None:
    """Answer every request with what was asked, as JSON."""
    while True:
        head, body = await connection.request()
        told = {"target": head.split(" ")[1], "length": len(body), "digest": hashlib.sha256(body).hexdigest()}
        connection.answer(json.dumps(told).encode())


async def says_nothing(connection: Connection) -> None:
    await connection.closed()


async def reads_and_says_nothing(connection: Connection) -> None:
    await connection.request()
    await connection.closed()


@pytest.fixture(params=["ours", "httpx"])
def client_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], httpx.AsyncClient]:
    """Makes clients for so many calls at once."""
    if request.param == "httpx":
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    return lambda connections: http_client(connections=connections, timeout_s=DEADLINE_S)


@pytest.fixture
async def client(client_of: Callable[[int], httpx.AsyncClient]) -> AsyncIterator[httpx.AsyncClient]:
    """A client for one call at a time."""
    async with client_of(1) as client:
        yield client


async def ask(client: httpx.AsyncClient, url: str, *, size_bytes: int = 0) -> Answer:
    return await asyncio.wait_for(
        post(client, url, name="it", headers={}, body={"text": "x" * size_bytes}, request=ASKED), DEADLINE_S
    )


async def failure(client: httpx.AsyncClient, url: str, *, size_bytes: int = 0) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await ask(client, url, size_bytes=size_bytes)
    return caught.value


class TestCertainlyNotSent:
    async def test_a_call_that_gets_no_place_in_time(self, client: httpx.AsyncClient) -> None:
        asked = asyncio.Event()

        async def holds(connection: Connection) -> None:
            await connection.request()
            asked.set()
            await connection.closed()

        async with server(holds) as url:
            first = asyncio.create_task(ask(client, url))
            await asyncio.wait_for(asked.wait(), DEADLINE_S)
            client.timeout = httpx.Timeout(DEADLINE_S, pool=SOON_S)
            error = await failure(client, url)
            first.cancel()
        assert type(error) is Unreachable
        assert isinstance(error.__cause__, httpx.PoolTimeout)

    async def test_a_server_that_does_not_finish_the_tls_handshake_in_time(self, client: httpx.AsyncClient) -> None:
        client.timeout = httpx.Timeout(DEADLINE_S, connect=SOON_S)
        async with server(says_nothing) as url:
            error = await failure(client, url.replace("http:", "https:"))
        assert type(error) is Unreachable
        assert isinstance(error.__cause__, httpx.ConnectTimeout)

    async def test_a_server_that_knows_no_tls(self, client: httpx.AsyncClient) -> None:
        async def knows_no_tls(connection: Connection) -> None:
            connection.answer(status="400 Bad Request")
            await connection.closed()

        async with server(knows_no_tls) as url:
            assert type(await failure(client, url.replace("http:", "https:"))) is Unreachable

    async def test_a_server_that_leaves_in_the_tls_handshake(self, client: httpx.AsyncClient) -> None:
        async def leaves(connection: Connection) -> None:
            connection.reset()

        async with server(leaves) as url:
            assert type(await failure(client, url.replace("http:", "https:"))) is Unreachable

    async def test_a_name_that_is_not_resolved_in_time(
        self, client_of: Callable[[int], httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def never(*_: Any, **__: Any) -> NoReturn:
            await asyncio.Event().wait()
            raise AssertionError

        async with client_of(1) as client:
            client.timeout = httpx.Timeout(DEADLINE_S, connect=SOON_S)
            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
            # The environment's proxy does not serve this one: it is of loopback.
            error = await failure(client, "http://localhost:9")
        assert type(error) is Unreachable
        assert isinstance(error.__cause__, httpx.ConnectTimeout)

    @pytest.mark.parametrize(
        "url", ["ftp://127.0.0.1/v1", "//127.0.0.1/v1", "/v1", "http:///v1", "http://127.0.0.1:0/v1"]
    )
    async def test_a_url_that_leads_nowhere(self, client: httpx.AsyncClient, url: str) -> None:
        assert type(await failure(client, url)) is Unreachable


class TestFateUnknown:
    async def test_a_connection_cut_in_the_body_of_the_request(self, client: httpx.AsyncClient) -> None:
        async def cuts(connection: Connection) -> None:
            await connection.head()
            connection.reset()

        async with server(cuts) as url:
            assert type(await failure(client, url, size_bytes=LARGE_BYTES)) is ReplyLost

    async def test_a_connection_closed_in_the_body_of_the_request(self, client: httpx.AsyncClient) -> None:
        async def closes(connection: Connection) -> None:
            await connection.head()

        async with server(closes) as url:
            assert type(await failure(client, url, size_bytes=LARGE_BYTES)) is ReplyLost

    async def test_a_connection_cut_after_the_request(self, client: httpx.AsyncClient) -> None:
        async def cuts(connection: Connection) -> None:
            await connection.request()
            connection.reset()

        async with server(cuts) as url:
            assert type(await failure(client, url)) is ReplyLost

    @pytest.mark.parametrize("cut", [Connection.close, Connection.reset])
    @pytest.mark.parametrize(
        "part",
        [
            b"HTTP/1.1 200 OK\r\ncont",
            b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n",
            b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"a":',
            b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\n{"a":',
            b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"a":\r\n',
        ],
    )
    async def test_a_reply_that_breaks_off(
        self, client: httpx.AsyncClient, part: bytes, cut: Callable[[Connection], None]
    ) -> None:
        async def breaks_off(connection: Connection) -> None:
            await connection.request()
            connection.send(part)
            cut(connection)

        async with server(breaks_off) as url:
            assert type(await failure(client, url)) is ReplyLost

    @pytest.mark.parametrize("reply", [b"no http at all\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n"])
    async def test_a_reply_that_is_no_http(self, client: httpx.AsyncClient, reply: bytes) -> None:
        async def babbles(connection: Connection) -> None:
            await connection.request()
            connection.send(reply)

        async with server(babbles) as url:
            assert type(await failure(client, url)) is ReplyLost

    @pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"])
    async def test_a_reply_that_stops(self, client: httpx.AsyncClient, part: bytes) -> None:
        client.timeout = httpx.Timeout(DEADLINE_S, read=SOON_S)

        async def stops(connection: Connection) -> None:
            await connection.request()
            connection.send(part)
            await connection.closed()

        async with server(stops) as url:
            error = await failure(client, url)
        assert type(error) is ReplyLost
        assert isinstance(error.__cause__, httpx.ReadTimeout)

    async def test_a_server_that_does_not_read_the_request(self, client: httpx.AsyncClient) -> None:
        client.timeout = httpx.Timeout(DEADLINE_S, write=SOON_S)
        gave_up = asyncio.Event()

        async def reads_no_body(connection: Connection) -> None:
            await connection.head()
            await gave_up.wait()

        async with server(reads_no_body) as url:
            try:
                error = await failure(client, url, size_bytes=LARGE_BYTES)
            finally:
                gave_up.set()
        assert type(error) is ReplyLost
        assert isinstance(error.__cause__, httpx.WriteTimeout)

    @pytest.mark.parametrize("cut", [Connection.close, Connection.reset])
    async def test_a_kept_connection_that_ends_with_the_next_request(
        self, client: httpx.AsyncClient, cut: Callable[[Connection], None]
    ) -> None:
        heads = []

        async def answers_once(connection: Connection) -> None:
            heads.append(await connection.request())
            connection.answer()
            heads.append(await connection.request())
            cut(connection)

        async with server(answers_once) as url:
            await ask(client, url)
            assert type(await failure(client, url)) is ReplyLost
        assert len(heads) == 2

    async def test_no_request_is_sent_twice_where_the_server_left_a_kept_connection(
        self, client: httpx.AsyncClient
    ) -> None:
        bodies = []

        async def answers_once(connection: Connection) -> None:
            bodies.append(await connection.request())
            connection.answer()

        async with server(answers_once) as url:
            for number in range(20):
                try:
                    await ask(client, url, size_bytes=number)
                except ReplyLost:
                    continue
        assert len(bodies) == len({body for _, body in bodies})


class TestPlaces:
    async def test_a_call_that_finds_a_place_has_all_its_time_to_connect(self, client: httpx.AsyncClient) -> None:
        client.timeout = httpx.Timeout(DEADLINE_S, pool=NO_TIME_S)
        async with server(answers) as url:
            assert (await ask(client, url)).status == 200
            await client.aclose()

    @pytest.mark.parametrize("size_bytes", [0, LARGE_BYTES])
    @pytest.mark.parametrize(
        "part", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", None]
    )
    async def test_a_cancelled_call_ends_its_connection_and_frees_its_place(
        self, client: httpx.AsyncClient, part: bytes | None, size_bytes: int
    ) -> None:
        """It is cancelled when the server has read its head, or all of it and begun to answer."""
        cancel, ended = asyncio.Event(), asyncio.Event()

        async def begins(connection: Connection) -> None:
            if part is None:
                await connection.head()
            else:
                await connection.request()
                connection.send(part)
            cancel.set()
            await connection.closed()
            ended.set()

        async with server(begins, answers) as url:
            call = asyncio.create_task(ask(client, url, size_bytes=size_bytes))
            await asyncio.wait_for(cancel.wait(), DEADLINE_S)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await asyncio.wait_for(ended.wait(), DEADLINE_S)
            assert (await ask(client, url)).status == 200
            await client.aclose()

    # httpx leaves the connection of such a call to the garbage collector.
    @pytest.mark.parametrize("client_of", ["ours"], indirect=True)
    async def test_a_call_cancelled_in_the_tls_handshake_frees_its_place(self, client: httpx.AsyncClient) -> None:
        shakes = asyncio.Event()

        async def silent(connection: Connection) -> None:
            shakes.set()
            await connection.closed()

        async with server(silent, answers) as url:
            call = asyncio.create_task(ask(client, url.replace("http:", "https:")))
            await asyncio.wait_for(shakes.wait(), DEADLINE_S)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert (await ask(client, url)).status == 200
            await client.aclose()

    async def test_a_call_cancelled_while_it_waits_for_a_place_takes_none(self, client: httpx.AsyncClient) -> None:
        asked, go = asyncio.Event(), asyncio.Event()

        async def holds_the_first(connection: Connection) -> None:
            await connection.request()
            asked.set()
            await go.wait()
            connection.answer()
            await answers(connection)

        async with server(holds_the_first) as url:
            first = asyncio.create_task(ask(client, url))
            await asyncio.wait_for(asked.wait(), DEADLINE_S)
            second = asyncio.create_task(ask(client, url))
            third = asyncio.create_task(ask(client, url))
            await asyncio.sleep(0)
            second.cancel()
            go.set()
            assert (await first).status == 200
            assert (await third).status == 200
            assert second.cancelled()
            await client.aclose()

    async def test_a_failed_call_frees_its_place(self, client: httpx.AsyncClient) -> None:
        async def hangs_up(connection: Connection) -> None:
            await connection.request()

        async with server(hangs_up, hangs_up, answers) as url:
            await failure(client, url)
            await failure(client, url)
            assert (await ask(client, url)).status == 200
            await client.aclose()


class TestWhatIsSent:
    @pytest.mark.parametrize("size_bytes", [0, 65_000, 65_536, 70_000, 3_000_000])
    async def test_a_body_arrives_whole(self, client: httpx.AsyncClient, size_bytes: int) -> None:
        body = json.dumps({"text": "x" * size_bytes}, separators=(",", ":")).encode()
        async with server(answers) as url:
            told = json.loads((await ask(client, url, size_bytes=size_bytes)).content)
            await client.aclose()
        assert told["length"] == len(body)
        assert told["digest"] == hashlib.sha256(body).hexdigest()

    @pytest.mark.parametrize("target", ["/a%2Fb/c%20d%3Fe", "/a%7Eb", "/v1?key=a%2Bb&c=d%20e", "/a%2E%2E/b"])
    async def test_a_path_stays_as_it_was_escaped(self, client: httpx.AsyncClient, target: str) -> None:
        async with server(answers) as url:
            told = json.loads((await ask(client, f"{url}{target}")).content)
            await client.aclose()
        assert told["target"] == target

    async def test_an_answer_that_comes_before_the_request_was_sent_whole_counts(
        self, client: httpx.AsyncClient
    ) -> None:
        async def refuses(connection: Connection) -> None:
            await connection.head()
            connection.answer(b"{}", status="413 Content Too Large")
            await connection.closed()

        async with server(refuses) as url:
            error = await failure(client, url, size_bytes=LARGE_BYTES)
            await client.aclose()
        assert type(error) is RequestRefused
        assert error.http_status == 413
