"""Files in SQL: whole or not at all, read as they were written, listed in pages, and gone when deleted."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, func
from sqlmodel import Session, select

from producer.gateway.files import CHUNK_BYTES, Files, NewFile
from producer.gateway.in_thread import InThreads
from producer.gateway.problem import Problem
from schemas.file_retention import FileRetention
from schemas.tables import FileChunk, StoredFile

numbers = itertools.count()


@pytest.fixture
def files(engine: Engine) -> Files:
    return Files(engine)


def new(**fields: Any) -> NewFile:
    named = {"id": f"file-{next(numbers):04}", "workspace": "demo", "purpose": "batch"}
    return NewFile(**{**named, "filename": "in.jsonl", "mime_type": "application/jsonl", **fields})


def chunks(engine: Engine) -> int:
    with Session(engine) as session:
        return session.exec(select(func.count()).select_from(FileChunk)).one()


async def save(files: Files, stream: AsyncIterator[bytes], max_bytes: int = 10 * CHUNK_BYTES) -> StoredFile:
    return await files.save(new(), stream, max_bytes=max_bytes, in_thread=asyncio.to_thread)


async def these(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def test_a_file_is_read_as_it_was_written_whatever_the_pieces(files: Files, engine: Engine) -> None:
    pieces = [b"a" * 700_000, b"b" * 2_500_000, b"", b"c" * (CHUNK_BYTES // 2)]
    saved = asyncio.run(save(files, these(*pieces)))
    assert saved.size_bytes == sum(map(len, pieces))
    read = list(files.content(saved))
    assert b"".join(read) == b"".join(pieces)
    assert {len(piece) for piece in read[:-1]} == {CHUNK_BYTES}
    assert chunks(engine) == len(read)
    empty = files.write(new(), [])
    assert (empty.size_bytes, list(files.content(empty))) == (0, [])


def test_a_name_that_no_database_takes_is_kept_as_far_as_it_goes(files: Files) -> None:
    assert files.write(new(filename="a\0\ud800.txt"), [b"x"]).filename == "a\ufffd?.txt"


def test_lines_are_found_across_chunks_and_one_that_is_too_long_is_refused(files: Files) -> None:
    long = b"x" * (CHUNK_BYTES - 3)
    saved = files.write(new(), [b"one\r\n\n", long, b"\nlast"])
    assert list(files.lines(saved, max_line_bytes=CHUNK_BYTES)) == [b"one", b"", long, b"last"]
    with pytest.raises(Problem, match="line 3 has more than 1,000 bytes"):
        list(files.lines(saved, max_line_bytes=1000))


@pytest.mark.parametrize("fate", ["breaks", "is cancelled", "is too large"])
def test_of_an_upload_that_breaks_off_nothing_stays(files: Files, engine: Engine, fate: str) -> None:
    async def upload() -> None:
        reached = asyncio.Event()

        async def stream() -> AsyncIterator[bytes]:
            yield b"a" * (2 * CHUNK_BYTES)
            assert await asyncio.to_thread(chunks, engine) == 2
            if fate == "breaks":
                raise ConnectionError("the client has gone")
            reached.set()
            if fate == "is cancelled":
                await asyncio.Event().wait()
            yield b"b" * CHUNK_BYTES

        task = asyncio.create_task(save(files, stream(), max_bytes=2 * CHUNK_BYTES))
        if fate == "is cancelled":
            await reached.wait()
            task.cancel()
        await task

    with pytest.raises((ConnectionError, asyncio.CancelledError, Problem)):
        asyncio.run(upload())
    assert chunks(engine) == 0
    assert files.page("demo", purposes=["batch"], limit=10) == ([], False)


def test_files_are_listed_in_pages_newest_first_by_workspace_and_purpose(files: Files) -> None:
    made = [files.write(new(), [b"x"]).id for _ in range(5)]
    files.write(new(workspace="other"), [b"x"])
    files.write(new(purpose="attachment"), [b"x"])

    def pages(**options: Any) -> Iterator[str]:
        after = None
        while True:
            page, more = files.page("demo", purposes=["batch"], limit=2, after=after, **options)
            yield from (file.id for file in page)
            if not more:
                return
            after = page[-1].id

    assert list(pages()) == made[::-1]
    assert list(pages(oldest_first=True)) == made
    files.delete("demo", made[2])
    # A cursor outlives its file.
    assert [file.id for file in files.page("demo", purposes=["batch"], limit=9, after=made[2])[0]] == made[1::-1]
    with pytest.raises(Problem, match="there is no file"):
        files.page("other", purposes=["batch"], limit=9, after=made[0])


def test_a_deleted_file_is_not_there_and_leaves_a_mark_without_content(files: Files, engine: Engine) -> None:
    saved = files.write(new(text="what it says"), [b"x" * 3 * CHUNK_BYTES])
    assert not files.delete("other", saved.id)
    assert files.delete("demo", saved.id)
    assert not files.delete("demo", saved.id)
    assert files.get("demo", saved.id) is None
    assert chunks(engine) == 0
    with Session(engine) as session:
        row = session.get_one(StoredFile, saved.id)
        assert (row.deleted_at is not None, row.text) == (True, None)
    with pytest.raises(Problem, match="deleted meanwhile"):
        list(files.content(saved))


def test_what_has_expired_is_not_there_and_is_pruned_with_what_is_old_and_what_was_never_whole(
    files: Files, engine: Engine
) -> None:
    now = datetime.now(UTC)
    expired = files.write(new(expires_at=now - timedelta(seconds=1)), [b"x"])
    kept = files.write(new(), [b"x"])
    old = files.write(new(), [b"x" * 40 * CHUNK_BYTES])
    with Session(engine) as session:
        session.get_one(StoredFile, old.id).created_at = now - timedelta(days=40)
        for file_id, age in (("lost", timedelta(days=2)), ("running", timedelta(hours=1))):
            for position in range(3):
                session.add(FileChunk(file_id=file_id, position=position, created_at=now - age, content=b"x"))
        session.commit()
    assert files.get("demo", expired.id) is None

    before = now - timedelta(days=30)
    assert sum(FileRetention(engine, before=before, dry_run=True).steps()) == 3
    assert chunks(engine) == 48
    # Without a limit only what nobody can read.
    assert sum(FileRetention(engine, before=None).steps()) == 2
    assert files.get("demo", old.id) is not None
    assert sum(FileRetention(engine, before=before).steps()) == 1
    with Session(engine) as session:
        assert session.exec(select(StoredFile.id)).all() == [kept.id]
        left = session.exec(select(FileChunk.file_id).distinct()).all()
    assert sorted(left) == sorted([kept.id, "running"])


def test_a_chunk_that_is_being_written_when_its_caller_leaves_goes_too(files: Files, engine: Engine) -> None:
    writes, goes_on = threading.Event(), threading.Event()

    @event.listens_for(engine, "before_cursor_execute")
    def _hold(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO file_chunks") and not writes.is_set():
            writes.set()
            assert goes_on.wait(30)

    async def upload() -> None:
        stream, to_its_end = these(b"a" * CHUNK_BYTES), InThreads(2).to_its_end
        task = asyncio.create_task(files.save(new(), stream, max_bytes=CHUNK_BYTES, in_thread=to_its_end))
        assert await asyncio.to_thread(writes.wait, 30)
        task.cancel()
        # Its own turn of the loop: it has heard of it.
        await asyncio.wait({task}, timeout=0)
        assert not task.done()
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(upload())
    assert chunks(engine) == 0


def test_what_its_caller_left_keeps_its_place_until_it_ends() -> None:
    begun, goes_on, done = threading.Event(), threading.Event(), list[str]()

    def work() -> None:
        begun.set()
        assert goes_on.wait(30)
        done.append("left")

    async def leave() -> None:
        run = InThreads(1)
        task = asyncio.create_task(run(work))
        assert await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        given_up, comes_next = (asyncio.create_task(run(done.append, word)) for word in ("given up", "next"))
        # Time in which neither may begin.
        await asyncio.wait({given_up, comes_next}, timeout=0.1)
        given_up.cancel()
        await asyncio.wait({given_up})
        goes_on.set()
        await comes_next
        assert done == ["left", "next"]

    asyncio.run(leave())


@pytest.mark.parametrize("silent", [False, True], ids=["trickles", "stands still"])
def test_an_upload_that_takes_days_is_kept_while_it_goes_on_and_refused_where_it_lost_its_head(
    files: Files, engine: Engine, silent: bool
) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"a" * CHUNK_BYTES
        if not silent:
            yield b"b" * CHUNK_BYTES
        with Session(engine) as session:
            session.exec(select(FileChunk).where(FileChunk.position == 0)).one().created_at -= timedelta(days=2)
            session.commit()
        list(FileRetention(engine, before=None).steps())
        yield b"end"

    if silent:
        with pytest.raises(Problem, match="stood still"):
            files.write(new(), pieces())
        assert chunks(engine) == 0
    else:
        assert b"".join(files.content(files.write(new(), pieces()))).endswith(b"bend")
