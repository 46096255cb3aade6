"""The transport connects to the address that was checked, and to no other."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.loopback_http import LoopbackHttp, Told
from worker.net.guard import AddressGuard
from worker.net.guarded_transport import ConnectionRefusedByGuard, GuardedTransport


class Names:
    """A resolver that gives each answer of a name once, and the last one for ever."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self._answers = answers
        self.asked: list[str] = []

    async def resolve(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        answers = self._answers.get(host.partition(".")[0])
        if answers is None:
            raise OSError("no such name")
        return answers.pop(0) if len(answers) > 1 else answers[0]


def get(url: str, names: Names | None = None, *, allow_private: bool = False, times: int = 1) -> httpx2.Response:
    async def main() -> httpx2.Response:
        guard = AddressGuard(allow_private=allow_private, resolve=names.resolve if names else None)
        async with httpx2.AsyncClient(transport=GuardedTransport(guard), trust_env=False) as client:
            for _ in range(times - 1):
                await client.get(url)
            return await client.get(url)

    return asyncio.run(main())


@pytest.fixture
def server() -> Iterator[LoopbackHttp]:
    with LoopbackHttp(lambda asked: Told(asked.headers["host"].encode())) as server:
        yield server


def test_a_name_is_resolved_once_and_that_address_is_connected_to(
    server: LoopbackHttp, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A second look at the name would find another address, as in DNS rebinding.
    names = Names(api=[["127.0.0.1"], ["10.0.0.1"]])
    monkeypatch.setattr("worker.net.guard.is_public", lambda address: str(address) == "127.0.0.1")

    response = get(f"http://api.test:{server.port}/", names)

    assert response.text == f"api.test:{server.port}"
    assert names.asked == ["api.test"]


def test_a_public_name_that_turns_into_loopback_is_refused_at_the_next_request(
    server: LoopbackHttp, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(api=[["127.0.0.1"], ["10.0.0.1"]])
    monkeypatch.setattr("worker.net.guard.is_public", lambda address: str(address) == "127.0.0.1")

    with pytest.raises(ConnectionRefusedByGuard, match="not on the public internet"):
        get(f"http://api.test:{server.port}/", names, times=2)

    assert len(server.asked) == 1


def test_what_goes_to_a_public_name_goes_to_its_address_whatever_the_name_becomes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = Names(api=[["93.184.216.34"], ["127.0.0.1"]])
    sent: list[httpx2.Request] = []

    async def record(_self: httpx2.AsyncHTTPTransport, request: httpx2.Request) -> httpx2.Response:
        sent.append(request)
        return httpx2.Response(200)

    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", record)
    get("https://api.test/a?b=c", names)

    (request,) = sent
    assert str(request.url) == "https://93.184.216.34/a?b=c"
    assert request.headers["host"] == "api.test"
    assert request.extensions["sni_hostname"] == "api.test"
    assert names.asked == ["api.test"]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "127.1",
        "0",
        "localhost",
        "public.test@127.0.0.1",
        "public.test:80@127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
    ],
)
def test_no_way_of_writing_loopback_reaches_a_server_there(server: LoopbackHttp, host: str) -> None:
    with pytest.raises(ConnectionRefusedByGuard):
        get(f"http://{host}:{server.port}/")

    assert not server.asked


def test_localhost_with_a_dot_at_its_end_is_refused(server: LoopbackHttp) -> None:
    with pytest.raises(ConnectionRefusedByGuard):
        get(f"http://localhost.:{server.port}/", Names(localhost=[["127.0.0.1"]]))


def test_a_workspace_that_allows_it_reaches_loopback(server: LoopbackHttp) -> None:
    assert get(server.url, allow_private=True).status_code == 200


def test_the_next_address_is_tried_when_one_takes_no_connection(server: LoopbackHttp) -> None:
    response = get(f"http://api.test:{server.port}/", Names(api=[["::1", "127.0.0.1"]]), allow_private=True)

    assert response.status_code == 200


def test_proxies_of_the_environment_are_not_used(server: LoopbackHttp, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, server.url)

    with pytest.raises(httpx2.ConnectError, match="unknown"):
        get("http://nowhere.test/", Names())

    assert not server.asked


@pytest.mark.parametrize("url", ["http://api.test:99999/", "http://api.test:0/"])
def test_a_port_that_does_not_exist_is_refused(url: str) -> None:
    with pytest.raises((httpx2.ConnectError, httpx2.InvalidURL)):
        get(url, Names(api=[["8.8.8.8"]]))


def test_another_scheme_is_refused() -> None:
    with pytest.raises(httpx2.UnsupportedProtocol):
        get("ftp://api.test/", Names(api=[["8.8.8.8"]]))


def test_a_resolver_that_hangs_is_a_time_out() -> None:
    async def hang(_host: str) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    async def main() -> None:
        transport = GuardedTransport(AddressGuard(allow_private=False, resolve=hang))
        async with httpx2.AsyncClient(transport=transport, timeout=httpx2.Timeout(5, connect=0.05)) as client:
            await client.get("http://api.test/")

    with pytest.raises(httpx2.ConnectTimeout):
        asyncio.run(main())


def test_tls_is_checked_against_the_name_and_not_the_address(tmp_path: Path) -> None:
    certificate = _certificate("api.test", tmp_path)
    asked_for: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda _socket, name, _context: asked_for.append(name)
    trusting = ssl.create_default_context(cafile=str(certificate))
    names = Names(api=[["127.0.0.1"]], other=[["127.0.0.1"]])

    async def main(port: int) -> str:
        guard = AddressGuard(allow_private=True, resolve=names.resolve)
        async with httpx2.AsyncClient(transport=GuardedTransport(guard, tls=trusting), trust_env=False) as client:
            response = await client.get(f"https://api.test:{port}/")
            # The same address, and so perhaps the same connection, which was made for another name.
            with pytest.raises(httpx2.ConnectError, match=r"(?i)certificate"):
                await client.get(f"https://other.test:{port}/")
            return response.text

    with LoopbackHttp(lambda _asked: Told(b"hello"), tls=context, keep_alive=True) as server:
        assert asyncio.run(main(server.port)) == "hello"

    assert asked_for == ["api.test", "other.test"]


def _certificate(name: str, directory: Path) -> Path:
    """Write a self-signed certificate for the name, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "certificate.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path
