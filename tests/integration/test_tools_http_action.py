"""HTTP actions over real HTTP: answers, redirects, secrets, bounds, and addresses that are out of reach."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from schemas.chat import ToolCall
from schemas.tool import HttpAction
from tests.loopback_http import Asked, LoopbackHttp, Told
from worker.tools.base import ToolAnswer, ToolsUnavailable
from worker.tools.calls import MAX_ANSWER_BYTES
from worker.tools.toolbox import WorkerToolbox

KEY = "hush-hush-4711"


async def resolve(host: str) -> Sequence[str]:
    """Know two hosts on loopback and one in a private network."""
    return {"one.test": ["127.0.0.1"], "two.test": ["127.0.0.1"], "internal.test": ["10.0.0.1"]}.get(host, [host])


def run(arguments: dict[str, Any] | None = None, *, private: bool = True, **fields: Any) -> ToolAnswer:
    async def main() -> ToolAnswer:
        toolbox = WorkerToolbox(
            environment={"ASSISTQ_SECRET_CRM": KEY},
            allows_private=lambda workspace: private and workspace == "demo",
            on_crash=lambda _name, error: pytest.fail(repr(error)),
            resolve=resolve,
        )
        spec = HttpAction.model_validate({"type": "http", "name": "t", "timeout_s": 5, **fields})
        try:
            async with toolbox.open([spec], workspace="demo") as tools:
                (answer,) = await tools.run([ToolCall(id="1", name="t", arguments=json.dumps(arguments or {}))])
                return answer
        finally:
            await toolbox.aclose()

    return asyncio.run(main())


@contextmanager
def serving(answer: Callable[[Asked], Told]) -> Iterator[LoopbackHttp]:
    with LoopbackHttp(answer) as server:
        yield server


@pytest.fixture
def loopback_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a server on loopback stands for one on the internet."""
    monkeypatch.setattr("worker.net.guard.is_public", lambda address: str(address) == "127.0.0.1")


def test_a_request_carries_what_the_action_says() -> None:
    with serving(lambda _asked: Told(b'{"ok": true}')) as server:
        answer = run(
            {"id": "a/b", "note": "ü"},
            method="PUT",
            url=f"{server.url}/users/{{{{ id }}}}",
            headers={"Authorization": "Bearer {{ secret }}", "X-Note": "n{{ note }}"},
            body={"note": "{{ note }}"},
            secret="crm",
        )

    (asked,) = server.asked
    assert (answer.failed, answer.content) == (False, '{"ok": true}')
    assert (asked.method, asked.target) == ("PUT", "/users/a%2Fb")
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.headers["content-type"] == "application/json"
    assert json.loads(asked.body) == {"note": "ü"}


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_status_that_is_no_success_is_a_failed_answer_with_the_body(status: int) -> None:
    with serving(lambda _asked: Told(b"no such user", status=status)) as server:
        answer = run(url=server.url)

    assert (answer.failed, answer.content) == (True, f"HTTP {status}: no such user")


def test_an_answer_without_a_body_says_its_status() -> None:
    with serving(lambda _asked: Told(status=204)) as server:
        assert run(url=server.url).content == "HTTP 204, without a body"


def test_arguments_that_do_not_fit_are_not_sent() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}
    with serving(lambda _asked: Told()) as server:
        answer = run({"n": 0}, url=server.url, parameters=schema)

    assert answer.failed
    assert "at n" in answer.content
    assert not server.asked


def test_the_secret_is_masked_in_answers_and_in_errors() -> None:
    with serving(lambda asked: Told(asked.headers["x-key"].encode(), status=200)) as server:
        answered = run(url=server.url, headers={"X-Key": "{{ secret }}"}, secret="crm")
    with serving(lambda asked: Told(json.dumps(asked.headers["x-key"]).encode(), status=403)) as server:
        refused = run(url=server.url, headers={"X-Key": "{{ secret }}"}, secret="crm")

    assert answered.content == "[secret]"
    assert refused.content == 'HTTP 403: "[secret]"'


def test_no_part_of_a_secret_stays_where_an_answer_was_cut() -> None:
    with serving(lambda _asked: Told(f"{KEY} ".encode() * 50_000)) as server:
        answer = run(url=server.url, headers={"X-Key": "{{ secret }}"}, secret="crm")

    assert KEY[:4] not in answer.content
    assert answer.content.startswith("[secret] [secret] ")


def test_a_secret_that_the_worker_does_not_have_names_its_variable() -> None:
    with pytest.raises(ToolsUnavailable, match="ASSISTQ_SECRET_OTHER") as unavailable:
        run(url="http://one.test/", secret="other")

    assert unavailable.value.configuration


@pytest.mark.parametrize("url", ["http://{{ host }}/", "http://one.test{{ port }}/"])
def test_an_action_whose_host_is_an_argument_is_refused(url: str) -> None:
    with pytest.raises(ToolsUnavailable, match="host") as unavailable:
        run(url=url)

    assert unavailable.value.configuration


@pytest.mark.parametrize("name", ["Host", "content-length", "Transfer-Encoding"])
def test_an_action_that_sets_a_header_of_the_connection_is_refused(name: str) -> None:
    with pytest.raises(ToolsUnavailable, match=name):
        run(url="http://one.test/", headers={name: "x"})


def test_an_endless_answer_is_read_no_further_than_the_bound() -> None:
    with serving(lambda _asked: Told(b"a" * 50_000_000)) as server:
        answer = run(url=server.url)

    assert not answer.failed
    assert answer.content.startswith("a" * MAX_ANSWER_BYTES)
    assert answer.content.endswith("[cut off after 64 KiB]")


def test_an_answer_that_is_compressed_unasked_is_not_unpacked() -> None:
    with serving(lambda _asked: Told(b"\x1f\x8b", headers={"content-encoding": "gzip"})) as server:
        answer = run(url=server.url, headers={"Accept-Encoding": "gzip"})

    assert answer.failed
    assert "compressed (gzip)" in answer.content
    assert server.asked[0].headers["accept-encoding"] == "identity"


def test_an_answer_that_is_no_text_is_not_shown() -> None:
    with serving(lambda _asked: Told(b"\x89PNG\x00", headers={"content-type": "image/png"})) as server:
        answer = run(url=server.url)

    assert (answer.failed, answer.content) == (True, "HTTP 200: the answer is no text but image/png")


def test_an_answer_is_read_in_the_charset_that_it_names() -> None:
    with serving(
        lambda _asked: Told("é".encode("latin-1"), headers={"content-type": "text/plain; charset=latin-1"})
    ) as server:
        assert run(url=server.url).content == "é"


def test_cookies_of_one_answer_do_not_go_with_the_next_request() -> None:
    def answer(asked: Asked) -> Told:
        if asked.target == "/":
            return Told(status=302, headers={"location": "/next", "set-cookie": "session=1; Path=/"})
        return Told(asked.headers.get("cookie", "none").encode())

    with serving(answer) as server:
        assert run(url=f"{server.url}/").content == "none"


def test_a_server_that_is_not_there_is_an_answer() -> None:
    answer = run(url="http://127.0.0.1:1/")

    assert answer.failed
    assert "ConnectError" in answer.content


def test_a_redirect_on_the_same_host_is_followed_with_all_headers() -> None:
    def answer(asked: Asked) -> Told:
        if asked.target == "/old":
            return Told(status=307, headers={"location": "/new"})
        return Told(asked.headers["x-key"].encode() + b" " + asked.body)

    with serving(answer) as server:
        answered = run(
            method="POST", url=f"{server.url}/old", headers={"X-Key": "{{ secret }}"}, body={"k": 1}, secret="crm"
        )

    assert answered.content == '[secret] {"k": 1}'
    assert server.asked[1].headers["x-key"] == KEY


@pytest.mark.usefixtures("loopback_is_public")
def test_a_redirect_to_another_host_takes_no_header_of_ours() -> None:
    def answer(asked: Asked) -> Told:
        if asked.headers["host"].startswith("one.test"):
            return Told(status=302, headers={"location": f"http://two.test:{server.port}/there"})
        return Told(b"arrived")

    with serving(answer) as server:
        answered = run(
            private=False,
            url=f"http://one.test:{server.port}/",
            headers={"Authorization": "Bearer {{ secret }}", "X-Key": "{{ secret }}"},
            secret="crm",
        )

    first, second = server.asked
    assert answered.content == "arrived"
    assert first.headers["x-key"] == KEY
    assert second.headers["host"] == f"two.test:{server.port}"
    assert KEY not in json.dumps(dict(second.headers))


def test_a_redirect_does_not_take_a_secret_in_the_body_to_another_host() -> None:
    def answer(asked: Asked) -> Told:
        if asked.headers["host"].startswith("one.test"):
            return Told(status=307, headers={"location": f"http://two.test:{server.port}/"})
        return Told(b"arrived")

    with serving(answer) as server:
        answered = run(method="POST", url=f"http://one.test:{server.port}/", body={"key": "{{ secret }}"}, secret="crm")

    assert answered.failed
    assert "two.test" in answered.content
    assert len(server.asked) == 1


@pytest.mark.usefixtures("loopback_is_public")
@pytest.mark.parametrize(
    "location",
    [
        "http://internal.test/",
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://one.test@10.0.0.1/",
        "//internal.test/",
        "http://[::1]/",
    ],
)
def test_a_redirect_into_a_private_network_is_refused(location: str) -> None:
    with serving(lambda _asked: Told(status=302, headers={"location": location})) as server:
        answer = run(private=False, url=f"http://one.test:{server.port}/")

    assert answer.failed
    assert "not on the public internet" in answer.content
    assert len(server.asked) == 1


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://one.test/", "http://", "http://[", "gopher://x"])
def test_a_redirect_to_what_is_no_http_is_an_answer(location: str) -> None:
    with serving(lambda _asked: Told(status=302, headers={"location": location})) as server:
        assert run(url=f"http://one.test:{server.port}/").failed


def test_redirects_end_somewhere() -> None:
    with serving(lambda _asked: Told(status=302, headers={"location": "/again"})) as server:
        answer = run(url=server.url)

    assert (answer.failed, answer.content) == (True, "the server redirected more than 5 times")
    assert len(server.asked) == 6


def test_loopback_is_out_of_reach_unless_the_workspace_allows_it() -> None:
    with serving(lambda _asked: Told(b"private")) as server:
        refused = run(private=False, url=server.url)
        assert not server.asked
        allowed = run(private=True, url=server.url)

    assert refused.failed
    assert "this workspace does not allow private addresses" in refused.content
    assert allowed.content == "private"
