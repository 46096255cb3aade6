"""Somebody stands still while they hold a thread's row: the jobs of other threads are settled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine
from sqlmodel import Session, col, select

from producer.gateway.threads import Threads
from schemas import database
from schemas.database import engine_for, ensure_tables
from schemas.tables import Thread
from tests.integration.test_gateway_threads import a_turn, begun, history, turn_of
from worker.store.base import StoreAway
from worker.store.sql import SqlStore
from worker.store.watch import AWAY_AFTER, WatchedStore

pytestmark = pytest.mark.anyio
# A bound for what would wait for ever; nothing is measured.
HANGS_AFTER_S = 60


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    """Of PostgreSQL alone: a SQLite has no locks of rows."""
    engine = engine_for(postgres_url)
    ensure_tables(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: Engine) -> Iterator[SqlStore]:
    store = SqlStore(engine)
    yield store
    store.close()


@pytest.fixture
def other(postgres_url: str) -> Iterator[Connection]:
    """Yield a connection of another process, such as the gateway."""
    engine = engine_for(postgres_url)
    connection = engine.connect()
    yield connection
    # Its server may have ended it.
    connection.invalidate()
    connection.close()
    engine.dispose()


def hold(connection: Connection, *thread_ids: str) -> None:
    connection.execute(select(Thread).where(col(Thread.id).in_(thread_ids)).with_for_update())


async def test_who_stands_still_with_threads_holds_up_only_their_jobs_and_sql_is_not_away(
    store: SqlStore, engine: Engine, other: Connection
) -> None:
    watched = WatchedStore(store)
    held = [begun(Threads(engine)) for _ in range(AWAY_AFTER)]
    # The server does not help here.
    other.exec_driver_sql("SET idle_in_transaction_session_timeout = 0")
    hold(other, *held)
    stuck = [a_turn(f"held{n}", thread_id, *turn_of(n)) for n, thread_id in enumerate(held)]
    free = [a_turn(f"free{n}", f"free-{n}", *turn_of(n)) for n in range(4)]
    try:
        async with asyncio.timeout(HANGS_AFTER_S):
            # The first is a group of its own, the others are one.
            ends = await asyncio.gather(*map(watched.settle, [*stuck, *free]), return_exceptions=True)
    finally:
        other.rollback()
    assert all(isinstance(end, StoreAway) for end in ends[: len(stuck)])
    assert ends[len(stuck) :] == [each.result for each in free]
    assert not watched.is_away
    assert [await watched.settle(each) for each in stuck] == [each.result for each in stuck]
    assert await history(store, held[0]) == [["job 0", "answer 0"]]


async def test_a_database_that_answered_of_held_rows_alone_is_not_away(
    store: SqlStore, engine: Engine, other: Connection
) -> None:
    watched = WatchedStore(store)
    thread_id = begun(Threads(engine))
    other.exec_driver_sql("SET idle_in_transaction_session_timeout = 0")
    hold(other, thread_id)
    try:
        async with asyncio.timeout(HANGS_AFTER_S):
            for n in range(AWAY_AFTER):
                with pytest.raises(StoreAway, match="lock timeout"):
                    await watched.settle(a_turn(f"j{n}", thread_id, *turn_of(n)))
    finally:
        other.rollback()
    assert not watched.is_away


async def test_the_server_ends_who_stands_still_in_a_transaction_whichever_side_it_is(
    postgres_url: str, store: SqlStore, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "IDLE_IN_TRANSACTION_S", 0.2)
    gateway = engine_for(postgres_url)
    thread_id = begun(Threads(engine))
    connection = gateway.connect()
    hold(connection, thread_id)
    turn = a_turn("j", thread_id, *turn_of(1))
    try:
        async with asyncio.timeout(HANGS_AFTER_S):
            while True:
                try:
                    assert await store.settle(turn) == turn.result
                    break
                except StoreAway:
                    continue
        # Its own next word finds the session ended, and a new one is opened.
        connection.invalidate()
        connection.close()
        with Session(gateway) as session:
            assert session.exec(select(Thread.id)).all() == [thread_id]
    finally:
        connection.close()
        gateway.dispose()
