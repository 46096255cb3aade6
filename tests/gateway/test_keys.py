"""Keys at the gateway's door: what opens it, what does not, how that is told, and what is left of a key's text."""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy import Engine, text

from producer.gateway import checked_keys
from producer.gateway.app import create_app
from producer.gateway.checked_keys import CheckedKeys
from producer.gateway.keys import ApiKeys, Scope
from producer.gateway.problem import Problem
from producer.gateway.request_limit import RequestLimit
from schemas import Settings, names
from schemas.database import engine_for
from schemas.errors import InputError
from schemas.tables import ApiKey
from tests.at_work import Scene
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

    def test_a_crash_tells_of_no_key_neither_its_caller_nor_the_log(
        self, settings: Settings, keys: ApiKeys, caplog: pytest.LogCaptureFixture
    ) -> None:
        app = create_app(settings)

        @app.get("/v1/crash")
        def crash() -> None:
            raise RuntimeError("on purpose")

        with TestClient(app, raise_server_exceptions=False) as client, caplog.at_level(logging.DEBUG):
            key = keys.create("demo").text
            answer = client.get("/v1/crash", headers=bearer(key))
        assert answer.status_code == 500
        assert "on purpose" in caplog.text
        assert "on purpose" not in answer.text
        for place in (caplog.text, answer.text):
            assert key not in place
            assert key[20:] not in place


class Counted(ApiKeys):
    """Counts how often SQL is asked, and lets the test do something between the asking and the answer."""

    asked = 0
    meanwhile: Any = None

    def find(self, text: str) -> ApiKey | None:
        self.asked += 1
        found = super().find(text)
        if self.meanwhile is not None:
            self.meanwhile()
        return found


@pytest.mark.anyio
class TestCheckedKeys:
    async def test_a_good_key_is_asked_for_once_and_again_when_it_may_be_different(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys, changed, now_s = Counted(engine), asyncio.Event(), [100.0]
        monkeypatch.setattr("producer.gateway.checked_keys.time", SimpleNamespace(monotonic=lambda: now_s[0]))
        checked = CheckedKeys(keys, changed=changed)
        made = keys.create("demo")
        for _ in range(10):
            assert (await checked.find(made.text)) is not None
        assert keys.asked == 1
        changed.set()
        assert await checked.find(made.text)
        assert keys.asked == 2
        keys.revoke(made.key.id)
        now_s[0] += checked_keys.KEPT_S - 0.1
        assert await checked.find(made.text)
        # At the worst, where no word came.
        now_s[0] += 0.2
        assert await checked.find(made.text) is None

    async def test_a_key_that_is_revoked_while_it_is_looked_up_is_not_kept(self, engine: Engine) -> None:
        keys, changed = Counted(engine), asyncio.Event()
        checked = CheckedKeys(keys, changed=changed)
        made = keys.create("demo")
        loop = asyncio.get_running_loop()

        def revoked() -> None:
            keys.meanwhile = None
            keys.revoke(made.key.id)
            loop.call_soon_threadsafe(changed.set)

        keys.meanwhile = revoked
        await checked.find(made.text)
        assert await checked.find(made.text) is None

    async def test_a_key_ends_by_time_also_while_it_is_kept(self, engine: Engine) -> None:
        keys = Counted(engine)
        checked = CheckedKeys(keys, changed=asyncio.Event())
        made = keys.create("demo", expires_at=datetime.now(UTC) + timedelta(hours=1))
        found = await checked.find(made.text)
        assert found is not None
        found.expires_at = datetime.now(UTC)
        assert await checked.find(made.text) is None
        assert keys.asked == 1

    async def test_wrong_keys_leave_nothing_behind_and_many_requests_at_once_ask_a_few_times(
        self, engine: Engine
    ) -> None:
        keys = Counted(engine)
        checked = CheckedKeys(keys, changed=asyncio.Event())
        good = keys.create("demo").text
        for number in range(100):
            assert await checked.find(f"{good[:-3]}{number:03}") is None
        assert await checked.find("aq_" + "x" * 1_000_000) is None
        assert keys.asked == 100
        assert len(checked._kept) == 0
        keys.asked = 0
        assert all(await asyncio.gather(*(checked.find(good) for _ in range(100))))
        assert 1 <= keys.asked <= 4
        assert len(checked._kept) == 1


@pytest.mark.anyio
class TestRequestLimit:
    async def passed(self, limit: RequestLimit, key_id: str, rpm: int, times: int) -> int:
        """Return how many of so many requests at once passed."""
        ended = await asyncio.gather(*(limit.take(key_id, rpm) for _ in range(times)), return_exceptions=True)
        assert all(each is None or (isinstance(each, Problem) and each.status == 429) for each in ended), ended
        return ended.count(None)

    async def test_of_many_at_once_so_many_pass_and_the_bucket_fills_evenly(self, redis_client: Redis) -> None:
        limit = RequestLimit(redis_client)
        key = names.request_limit("k")
        assert await self.passed(limit, "k", 2, 40) == 2
        assert 30_000 < await redis_client.pttl(key) <= 60_000
        with pytest.raises(Problem) as refused:
            await limit.take("k", 2)
        assert refused.value.retry_after_s is not None
        assert 0 < refused.value.retry_after_s <= 30

        async def passes(seconds: int) -> None:
            full_us = int(await redis_client.get(key) or 0)
            await redis_client.set(key, full_us - seconds * 1_000_000)

        await passes(30)
        assert await self.passed(limit, "k", 2, 40) == 1
        await passes(600)
        assert await self.passed(limit, "k", 2, 40) == 2
        # The clock was set back by an hour: the key waits as long as for one request.
        await passes(-3600)
        with pytest.raises(Problem) as refused:
            await limit.take("k", 2)
        assert (refused.value.retry_after_s or 0) <= 30

    async def test_it_counts_also_where_the_servers_memory_is_full(self, redis_client: Redis) -> None:
        await redis_client.config_set("maxmemory", 1)
        try:
            assert await self.passed(RequestLimit(redis_client), "k", 1, 3) == 1
        finally:
            await redis_client.config_set("maxmemory", 0)


class TestStored:
    def test_those_who_share_at_once_lose_nothing(self, engine: Engine) -> None:
        keys = ApiKeys(engine)
        key_id = keys.create("demo", assistants=["demo/a/first"]).key.id
        together = threading.Barrier(4)

        def share(number: int) -> None:
            together.wait(30)
            for each in range(5):
                keys.share(key_id, [f"demo/a/no{number}-{each}"])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(share, range(4)))
        (key,) = keys.all("demo")
        assert len(key.assistants) == 21

    @pytest.mark.parametrize(
        ("addresses", "says"),
        [
            (["other/a/b"], "other/a/b is not of workspace demo"),
            (["demo/a"], "'demo/a' is no assistant"),
            (["demo2/a/b"], "demo2/a/b is not of workspace demo"),
        ],
    )
    def test_no_assistant_of_another_workspace_is_shared(self, engine: Engine, addresses: list[str], says: str) -> None:
        keys = ApiKeys(engine)
        key_id = keys.create("demo", assistants=["demo/a/b"]).key.id
        with pytest.raises(InputError, match=says):
            keys.create("demo", assistants=addresses)
        with pytest.raises(InputError, match=says):
            keys.share(key_id, addresses)
        assert [key.assistants for key in keys.all()] == [["demo/a/b"]]

    def test_a_wrong_secret_is_compared_as_long_whether_its_key_is_there_or_not(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys, compared, compare = ApiKeys(engine), [], hmac.compare_digest
        there = keys.create("demo").text

        def counting(a: str, b: str) -> bool:
            compared.append((len(a), len(b)))
            return compare(a, b)

        monkeypatch.setattr("producer.gateway.keys.hmac", SimpleNamespace(compare_digest=counting))
        assert keys.find(there[:-1] + "-") is None
        assert keys.find("aq_" + "0" * 16 + there[19:]) is None
        assert compared == [(64, 64)] * 2
