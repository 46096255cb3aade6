"""Keys at the gateway's door: what opens it, what does not, how that is told, and what is left of a key's text."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import text

from producer.gateway import checked_keys
from producer.gateway.app import create_app
from producer.gateway.keys import ApiKeys, Scope
from schemas import Settings
from schemas.database import engine_for
from tests.at_work import Scene, Works
from tests.command_line import Installation
from tests.loopback_provider import Reply
from tests.processes import until
from tests.served_gateway import ServedGateway
from tests.servers import OwnValkey

# A path of each dialect, and where its error bodies have the message. The key is looked at before the route is.
OF_DIALECTS = {
    "openai": ("/v1/models", ("error", "message")),
    "agent": ("/api/v1/compatibility/openai/a/chat/completions", ("detail",)),
    "langdock": ("/assistant/v1/chat/completions", ("message",)),
    "langtail": ("/w/p/a/production", ("error", "message")),
    "own": ("/v1/jobs/j", ("detail",)),
}
every_dialect = pytest.mark.parametrize(("path", "place"), OF_DIALECTS.values(), ids=OF_DIALECTS)


def message_of(answer: Any, place: tuple[str, ...]) -> str:
    found: Any = answer.json()
    for name in place:
        found = found[name]
    assert isinstance(found, str)
    return found


def bearer(key: str | bytes) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + (key if isinstance(key, bytes) else key.encode())}


def wrong_keys(keys: ApiKeys, workspace: str) -> dict[str, dict[bytes, bytes]]:
    """Return headers with keys that are not good, by what is wrong with them."""
    good = keys.create(workspace).text
    revoked = keys.create(workspace)
    keys.revoke(revoked.key.id)
    expired = keys.create(workspace, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    return {
        "of another secret": bearer(good[:-1] + ("A" if good[-1] != "A" else "B")),
        "of an unknown id": bearer("aq_" + "0" * 16 + good[19:]),
        "revoked": bearer(revoked.text),
        "expired": bearer(expired.text),
        "malformed": bearer("sk-1234"),
        "only an id": bearer(good[:19]),
        "longer": bearer(good + "A"),
        "not ASCII": bearer("aq_ключ_ß".encode()),
        "not UTF-8": bearer(b"aq_\xff\xfe"),
        "huge": bearer("aq_" + "a" * 30_000),
        "in the other header": {b"x-api-key": b"nobody"},
    }


@every_dialect
def test_a_key_that_is_not_good_is_refused_in_the_dialects_form_and_all_alike(
    gateway: ServedGateway, scene: Scene, path: str, place: tuple[str, ...]
) -> None:
    with httpx.Client(base_url=gateway.url, trust_env=False) as client:
        for what, headers in wrong_keys(gateway.keys, scene.workspace).items():
            answer = client.get(path, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), (what, answer.text)
            assert message_of(answer, place).startswith("the API key is not valid"), what
        for none in ({}, {"authorization": "Bearer"}, {"authorization": "Basic YTpi"}, {"x-api-key": ""}):
            answer = client.get(path, headers=none)
            assert answer.status_code == 401
            assert message_of(answer, place).startswith("no API key; send")
        good = gateway.key(scene.workspace)
        for sent in (bearer(good), {b"authorization": f"bearer  {good}".encode()}, {b"x-api-key": good.encode()}):
            assert client.get(path, headers=sent).status_code in {404, 405, 501, 200}


def test_a_key_is_looked_at_before_the_body_is_sent(gateway: ServedGateway) -> None:
    address = urlsplit(gateway.url)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer no\r\ncontent-length: 9999999\r\n\r\n"
    )
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=30) as connection:
        connection.sendall(head.encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 401 ")


def test_a_key_without_the_scope_of_a_route_is_refused_there(gateway: ServedGateway, scene: Scene) -> None:
    scene.replies(Reply(text="Hello."))
    body = {"model": scene.model, "messages": [{"role": "user", "content": "Hi"}]}
    with (
        gateway.client(scene.workspace, scopes=[Scope.READ]) as reader,
        gateway.client(scene.workspace, scopes=[Scope.RUN]) as runner,
    ):
        refused = reader.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope")
        assert "'run'" in refused.json()["error"]["message"]
        assert scene.asked == []
        assert runner.post("/v1/chat/completions", json=body).status_code == 200


@every_dialect
def test_more_requests_than_a_key_may_make_in_a_minute_are_refused_in_the_dialects_form(
    gateway: ServedGateway, scene: Scene, path: str, place: tuple[str, ...]
) -> None:
    with gateway.client(scene.workspace, rpm=3) as client, gateway.client(scene.workspace) as other:
        assert 429 not in [client.get(path).status_code for _ in range(3)]
        refused = client.get(path)
        assert refused.status_code == 429, refused.text
        assert "this key may make 3 requests a minute" in message_of(refused, place)
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert other.get(path).status_code != 429


def test_a_keys_text_is_nowhere_but_with_its_owner(gateway: ServedGateway, scene: Scene) -> None:
    made = gateway.keys.create(scene.workspace, rpm=100)
    secret = made.text[20:]
    wrong = made.text[:20] + secret[::-1]
    scene.replies(Reply(text="Hello."))
    body = {"model": scene.model, "messages": [{"role": "user", "content": "Hi"}]}
    answers = []
    for sent in (made.text, wrong):
        for header in (bearer(sent), {b"x-api-key": sent.encode()}):
            with httpx.Client(base_url=gateway.url, headers=header, trust_env=False, timeout=60) as client:
                answers += [client.get(path) for path in ("/v1/models", "/v1/jobs/none", "/metrics", "/openapi.json")]
    answers.append(httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=bearer(made.text), timeout=60))
    assert answers[-1].status_code == 200
    told = [answer.text + repr(answer.headers) for answer in answers]
    kept = [gateway.said, scene.works.everything_in_sql(), all_of(scene.works.redis)]
    for place in told + kept + [scene.works.log.read_text("utf-8")]:
        assert secret not in place
        assert wrong not in place
        if place is not kept[1]:
            assert made.key.secret_hash not in place
    assert f"aq:rpm:{made.key.id}" in kept[2]


def test_a_crash_tells_of_no_key_neither_its_caller_nor_the_log(works: Works, tmp_path: Path) -> None:
    served, keys = ServedGateway(works), ApiKeys(works.engine)
    served.log = tmp_path / "crashed.log"
    key = keys.create("demo")
    with works.engine.begin() as connection:
        # No release writes this.
        connection.execute(text("UPDATE api_keys SET scopes = '7' WHERE id = :id"), {"id": key.key.id})
    served.start()
    try:
        answer = httpx.get(f"{served.url}/v1/jobs/j", headers=bearer(key.text))
        assert answer.status_code == 500
        until(lambda: "TypeError" in served.said, what="it is logged")
        assert "TypeError" not in answer.text
        for place in (served.said, answer.text):
            assert key.text[20:] not in place
            assert key.key.secret_hash not in place
    finally:
        served.stop()


def all_of(redis: Any) -> str:
    """Return every key of Redis, and what it holds, as it would be dumped."""
    return repr([(key.decode(), redis.dump(key)) for key in redis.keys("*")])


class TestOnAServerOfItsOwn:
    """The application in this process, so that time passes, and servers go away, as the test says."""

    @pytest.fixture
    def queue(self, servers_dir: Path) -> Iterator[OwnValkey]:
        with OwnValkey(servers_dir / "keys") as queue:
            yield queue
            queue.client.flushall()

    @pytest.fixture
    def settings(self, queue: OwnValkey, sqlite_url: str) -> Settings:
        return Settings(redis_url=SecretStr(queue.url), database_url=SecretStr(sqlite_url))

    @pytest.fixture
    def keys(self, settings: Settings) -> Iterator[ApiKeys]:
        engine = engine_for(settings.effective_database_url)
        yield ApiKeys(engine)
        engine.dispose()

    def test_a_revoked_key_is_out_as_soon_as_redis_has_told_the_gateways(
        self, settings: Settings, keys: ApiKeys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checked_keys, "KEPT_S", 3600.0)
        servers = {
            "ASSISTQ_REDIS_URL": settings.effective_redis_url,
            "ASSISTQ_DATABASE_URL": settings.effective_database_url,
        }
        with TestClient(create_app(settings)) as client, Installation(tmp_path, **servers) as shell:
            made = keys.create("demo")
            headers = {"x-api-key": made.text}
            assert client.get("/v1/none", headers=headers).status_code == 404
            # Without a word the gateway knows no better.
            keys.revoke(made.key.id)
            assert client.get("/v1/none", headers=headers).status_code == 404
            ended = shell.run("keys", "revoke", made.key.id)
            assert "running gateways know at once" in ended.err
            until(lambda: client.get("/v1/none", headers=headers).status_code == 401, what="the key is out")

    def test_where_redis_is_away_a_key_with_a_limit_waits_and_others_do_not(
        self, settings: Settings, keys: ApiKeys, queue: OwnValkey
    ) -> None:
        with TestClient(create_app(settings)) as client:
            limited, free = (keys.create("demo", rpm=rpm).text for rpm in (5, None))
            queue.kill()
            for path, place in OF_DIALECTS.values():
                answer = client.get(path, headers={"x-api-key": limited})
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                assert "does not answer" in message_of(answer, place)
            assert client.get("/v1/none", headers={"x-api-key": free}).status_code == 404
            queue.start()
            until(
                lambda: client.get("/v1/none", headers={"x-api-key": limited}).status_code == 404,
                what="the key's requests are counted again",
            )

    def test_where_the_database_is_away_nobody_is_told_that_the_key_is_wrong(
        self, settings: Settings, keys: ApiKeys
    ) -> None:
        with TestClient(create_app(settings)) as client:
            key = keys.create("demo").text
            with engine_for(settings.effective_database_url).begin() as connection:
                connection.execute(text("ALTER TABLE api_keys RENAME TO elsewhere"))
            for path, place in OF_DIALECTS.values():
                answer = client.get(path, headers={"x-api-key": key})
                assert answer.status_code == 503
                assert message_of(answer, place) == "the database, which has the keys, does not answer; try again"
