"""`Idempotency-Key`: which ids a request gets."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis

from producer.gateway.idempotency import Identified, identified
from producer.gateway.parts import Parts
from producer.gateway.problem import Kind, Problem
from tests.at_work import Works


class Body(BaseModel):
    text: str


def ids(works: Works, *requests: dict[str, Any]) -> list[Identified | BaseException | None]:
    """Send these requests at once."""

    async def run() -> list[Identified | BaseException | None]:
        async with Redis.from_url(works.queue.url) as connection:
            parts = cast("Parts", SimpleNamespace(redis=connection))
            return await asyncio.gather(
                *(identified(parts, **{"operation": "jobs", **each}) for each in requests), return_exceptions=True
            )

    return asyncio.run(run())


def test_requests_with_one_key_and_one_body_get_one_id_even_at_once(works: Works) -> None:
    request = {"key": "k-1", "workspace": "idem1", "body": Body(text="a")}
    found = set(ids(works, *[request] * 20))
    assert len(found) == 1
    assert ids(works, request) == list(found)


def test_another_workspace_operation_or_key_makes_another_id(works: Works) -> None:
    request = {"key": "k-1", "workspace": "idem2", "body": Body(text="a")}
    others = [{**request, "workspace": "idem3"}, {**request, "operation": "batches"}, {**request, "key": "k-2"}]
    assert len(set(ids(works, request, *others))) == 4
    assert ids(works, {**request, "key": None}) == [None]


def test_a_key_that_came_with_another_body_is_refused_and_the_first_stands(works: Works) -> None:
    request = {"key": "k-1", "workspace": "idem4", "body": Body(text="a")}
    (first,) = ids(works, request)
    (refused,) = ids(works, {**request, "body": Body(text="b")})
    assert isinstance(refused, Problem)
    assert (refused.kind, refused.code) == (Kind.UNPROCESSABLE, "idempotency_key_reused")
    assert ids(works, request) == [first]


@pytest.mark.parametrize(("one", "other"), [(("ab", "c"), ("a", "bc")), (("a", "1:b"), ("a1:", "b"))])
def test_no_two_requests_run_into_each_other(works: Works, one: tuple[str, str], other: tuple[str, str]) -> None:
    found = ids(works, *({"workspace": w, "key": k, "body": Body(text="a")} for w, k in (one, other)))
    assert len(set(found)) == 2
