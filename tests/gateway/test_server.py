"""The gateway as a server: what is too large, too slow or no HTTP, its health, metrics and logs."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from producer.gateway.bodies import Dialect, dialect_of
from schemas import names
from tests.at_work import Scene, Works
from tests.loopback_provider import Reply, streams
from tests.processes import until
from tests.served_gateway import ServedGateway

MAX_BODY = 10_000


@pytest.fixture(scope="module")
def gateway(works: Works) -> Iterator[ServedGateway]:
    """A gateway with little patience."""
    settings = {"ASSISTQ_HTTP_PATIENCE_S": "0.5", "ASSISTQ_HTTP_MAX_BODY_BYTES": str(MAX_BODY)}
    with ServedGateway(works, **settings) as served:
        yield served


def connected(gateway: ServedGateway) -> socket.socket:
    url = httpx.URL(gateway.url)
    return socket.create_connection((url.host, url.port or 80), timeout=20)


def rest_of(connection: socket.socket) -> bytes:
    """Return what comes until the other side closes."""
    received = b""
    while piece := connection.recv(65_536):
        received += piece
    return received


def test_headers_that_do_not_end_close_the_connection(gateway: ServedGateway) -> None:
    with closing(connected(gateway)) as silent, closing(connected(gateway)) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\nx-")
        assert rest_of(silent) == b""
        assert rest_of(slow) == b""


def test_headers_without_bound_close_the_connection(gateway: ServedGateway) -> None:
    with closing(connected(gateway)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(OSError):  # noqa: PT011, PT012 - a reset or a broken pipe
            while True:
                connection.sendall(b"x-header: " + b"y" * 10_000 + b"\r\n")
                connection.sendall(b"x-more: " + b"y" * 10_000 + b"\r\n")


def test_a_second_request_on_a_connection_has_its_time_too(gateway: ServedGateway) -> None:
    with closing(connected(gateway)) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: here\r\n\r\n")
        answered = b""
        while not answered.endswith(b"}"):
            answered += connection.recv(65_536)
        assert answered.startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost:")
        assert rest_of(connection) == b""


def test_a_body_that_pauses_is_refused_in_the_dialects_form(gateway: ServedGateway) -> None:
    key = gateway.key("home")
    with closing(connected(gateway)) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {key}\r\n"
        connection.sendall(head.encode() + b'content-type: application/json\r\ncontent-length: 100\r\n\r\n{"model"')
        answer = rest_of(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_too_slow"


@pytest.mark.parametrize("told", [True, False], ids=["told", "chunked"])
def test_a_body_that_is_too_large_is_refused_in_the_dialects_form(client: httpx.Client, told: bool) -> None:
    large = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * MAX_BODY}]}).encode()
    content = large if told else iter([large[:5000], large[5000:]])
    headers = {"content-type": "application/json"}
    answer = client.post("/v1/chat/completions", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 5000,
        b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b"null",
    ],
    ids=["empty", "cut", "no UTF-8", "deep", "half a character", "null"],
)
def test_what_is_no_request_is_refused_in_the_dialects_form(client: httpx.Client, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = client.post("/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_what_is_no_http_is_refused(gateway: ServedGateway) -> None:
    with closing(connected(gateway)) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert rest_of(connection).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", Dialect.OPENAI),
        ("/v1/batches/b1", Dialect.OPENAI),
        ("/v1/jobs", Dialect.OWN),
        ("/v1/job-batches", Dialect.OWN),
        ("/api/v1/compatibility/openai/v1/agents/a/chat/completions", Dialect.AGENT),
        ("/assistant/v1/chat/completions", Dialect.LANGDOCK),
        ("/attachment/v1/upload", Dialect.LANGDOCK_ATTACHMENT),
        ("/acme/reviews/sentiment/production", Dialect.LANGTAIL),
        ("/v2/threads", Dialect.LANGTAIL),
        ("/v1/embeddings", Dialect.OPENAI),
        ("/metrics", Dialect.OWN),
        ("/metricsco/tests/a/production", Dialect.LANGTAIL),
        ("/nowhere", Dialect.OWN),
    ],
)
def test_the_path_says_whose_form_an_error_has(path: str, dialect: Dialect) -> None:
    assert dialect_of(path) is dialect


def test_health_and_metrics_need_no_key_and_tell_nothing_of_anybody(
    gateway: ServedGateway, client: httpx.Client, scene: Scene
) -> None:
    scene.replies(Reply(text="Hello."))
    body = {"model": scene.model, "messages": [{"role": "user", "content": "canary-in"}]}
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    for path in ("/healthz", "/readyz"):
        assert httpx.get(gateway.url + path).json() == {"status": "ok"}
    metrics = httpx.get(gateway.url + "/metrics").text
    assert 'assistq_http_requests_total{dialect="openai",status="200"}' in metrics
    assert scene.workspace not in metrics
    (told,) = [line for line in gateway.logged("request") if line["status"] == 200]
    assert told["route"] == "/v1/chat/completions"
    assert "canary-in" not in gateway.said


def test_no_web_page_may_call_unless_its_origin_is_allowed(gateway: ServedGateway, works: Works) -> None:
    asks = {"origin": "https://page.example", "access-control-request-method": "POST"}
    assert (
        "access-control-allow-origin" not in httpx.options(f"{gateway.url}/v1/chat/completions", headers=asks).headers
    )
    with ServedGateway(works, ASSISTQ_HTTP_CORS_ORIGINS="https://page.example") as open_one:
        allowed = httpx.options(f"{open_one.url}/v1/chat/completions", headers=asks)
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"
        other = httpx.options(f"{open_one.url}/v1/chat/completions", headers={**asks, "origin": "https://x.example"})
        assert "access-control-allow-origin" not in other.headers


def test_a_gateway_that_is_told_to_stop_answers_what_it_began(works: Works, scene: Scene) -> None:
    scene.plays(hang_until_stopped := _Held())
    with ServedGateway(works) as gateway, gateway.client(scene.workspace) as client:
        answers: list[httpx.Response] = []
        body = {"model": scene.model, "messages": [{"role": "user", "content": "Hi"}]}
        waiting = threading.Thread(target=lambda: answers.append(client.post("/v1/chat/completions", json=body)))
        waiting.start()
        until(lambda: scene.asked, what="the provider is asked")
        assert gateway.process is not None
        gateway.process.send_signal(signal.SIGTERM)
        until(lambda: _refuses(gateway), what="it takes no connection any more")
        hang_until_stopped.let_go()
        waiting.join(30)
        assert [answer.status_code for answer in answers] == [200]
        gateway.process.wait(20)


def test_a_client_that_never_reads_its_stream_counts_as_gone(works: Works, scene: Scene) -> None:
    never = threading.Event()
    # More than lies in buffers between the two.
    scene.plays(lambda _body, _n: streams(*["much " * 20_000] * 250, never))
    body = json.dumps({"model": scene.model, "messages": [{"role": "user", "content": "Hi"}], "stream": True})
    with ServedGateway(works, ASSISTQ_HTTP_STALLED_S="1") as gateway, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        key = gateway.key(scene.workspace)
        url = httpx.URL(gateway.url)
        client.connect((url.host, url.port or 80))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {key}\r\n"
        told = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall((head + told + body).encode())
        until(lambda: _open_requests(gateway), what="it is asked")
        until(lambda: not _open_requests(gateway), what="it has given up")
        (job,) = [key for key in works.redis.scan_iter(names.job("*")) if _is_of(scene, works, key)]
        until(lambda: works.redis.hget(job, "called_off") == b"cancelled", what="its job is called off")
    never.set()


def _open_requests(gateway: ServedGateway) -> bool:
    return "assistq_http_open_requests 0.0" not in httpx.get(f"{gateway.url}/metrics", trust_env=False).text


def _is_of(scene: Scene, works: Works, job: bytes) -> bool:
    return f'"model":"{scene.model}"' in (works.redis.hget(job, "record") or b"").decode()


class _Held:
    """A reply that waits for a word."""

    def __init__(self) -> None:
        self._word = threading.Event()

    def __call__(self, body: object, n: int) -> Reply:
        self._word.wait(30)
        return Reply(text="At last.")

    def let_go(self) -> None:
        self._word.set()


def _refuses(gateway: ServedGateway) -> bool:
    try:
        connected(gateway).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_gateway_without_its_queue_says_so_in_one_line(works: Works) -> None:
    gateway = ServedGateway(works, ASSISTQ_REDIS_URL="redis://127.0.0.1:1/0")
    with pytest.raises(AssertionError, match=r"gateway: Redis does not answer at 127\.0\.0\.1:1"):
        gateway.start()
    assert "Traceback" not in gateway.said
