"""Keys that are kept for a moment, their requests in Redis, and their rows in SQL."""

from __future__ import annotations

import asyncio
import hmac
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import Engine

from producer.gateway import checked_keys
from producer.gateway.checked_keys import CheckedKeys
from producer.gateway.keys import ApiKeys
from producer.gateway.problem import Problem
from producer.gateway.request_limit import RequestLimit
from producer.gateway.switchboard import Switchboard
from schemas import names
from schemas.errors import InputError
from schemas.tables import ApiKey

# A Redis that is never asked.
NOBODY = Redis.from_url("redis://127.0.0.1:1")


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
        checked = CheckedKeys(keys, NOBODY, changed=changed)
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
        checked = CheckedKeys(keys, NOBODY, changed=changed)
        made = keys.create("demo")
        other = keys.create("demo").text
        loop = asyncio.get_running_loop()

        def revoked() -> None:
            keys.meanwhile = None
            keys.revoke(made.key.id)
            loop.call_soon_threadsafe(changed.set)
            # Another request hears of it first.
            asyncio.run_coroutine_threadsafe(checked.find(other), loop).result(30)

        keys.meanwhile = revoked
        await checked.find(made.text)
        assert await checked.find(made.text) is None

    async def test_a_key_ends_by_time_also_while_it_is_kept(self, engine: Engine) -> None:
        keys = Counted(engine)
        checked = CheckedKeys(keys, NOBODY, changed=asyncio.Event())
        made = keys.create("demo", expires_at=datetime.now(UTC) + timedelta(hours=1))
        found = await checked.find(made.text)
        assert found is not None
        found.expires_at = datetime.now(UTC)
        assert await checked.find(made.text) is None
        assert keys.asked == 1

    async def test_who_changes_a_key_is_heard_by_every_gateway_and_by_itself_at_once(
        self, engine: Engine, redis_client: Redis
    ) -> None:
        keys, switchboard = ApiKeys(engine), Switchboard(redis_client)
        made = keys.create("demo", assistants=[])
        async with switchboard.running(), switchboard.listening(names.KEYS_CHANNEL) as heard:
            other = CheckedKeys(keys, redis_client, changed=heard)
            here = CheckedKeys(keys, redis_client, changed=asyncio.Event())
            for checked in (here, other):
                assert getattr(await checked.find(made.text), "assistants", None) == []
            keys.share(made.key.id, ["demo/a/b"])
            await here.forget()
            assert getattr(await here.find(made.text), "assistants", None) == ["demo/a/b"]
            await asyncio.wait_for(heard.wait(), 30)
            assert getattr(await other.find(made.text), "assistants", None) == ["demo/a/b"]

    async def test_wrong_keys_leave_nothing_behind_and_many_requests_at_once_ask_a_few_times(
        self, engine: Engine
    ) -> None:
        keys = Counted(engine)
        checked = CheckedKeys(keys, NOBODY, changed=asyncio.Event())
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
