"""Stored files in SQL, in pieces of 1 MiB: saved from a stream and read as one, in constant memory.

A file's row is written last, so that only a whole file is visible. Pieces without a row are an upload that runs, or
one whose process died: retention deletes these. No transaction is longer than one piece takes, for others write to
the same database.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import anyio
from sqlalchemy import Engine, func, update
from sqlmodel import Session, and_, col, or_, select
from starlette.datastructures import UploadFile

from producer.gateway.problem import Kind, Problem
from producer.gateway.sharing import made_within, within
from schemas.file_retention import delete_chunks
from schemas.tables import FileChunk, StoredFile, storable

CHUNK_BYTES = 1024 * 1024

# `Parts.in_thread_to_its_end`: a chunk that is written on after a drop would stay.
InThread = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class NewFile:
    """What is to be saved, beside its bytes. `id` is made by the server, never by a caller.

    `assistants` are those that the key which brings it may use, None all of its workspace.
    """

    id: str
    workspace: str
    purpose: str
    filename: str
    mime_type: str
    text: str | None = None
    expires_at: datetime | None = None
    assistants: list[str] | None = None


class LineTooLongError(Problem):
    """A line of a file is too long to be read; `number` counts from 1."""

    def __init__(self, number: int, max_line_bytes: int) -> None:
        """Say which, and how long it may be."""
        what = f"line {number} has more than {max_line_bytes:,} bytes"
        super().__init__(Kind.BAD_REQUEST, what, code="line_too_long")
        self.number = number


class Files:
    """The files of one database; its tables must exist. Its methods are for threads, but for `save`.

    A file that was deleted, has expired or belongs to another workspace is not there. `assistants` are those of the
    key that looks, which sees what access.py says; None sees all.
    """

    def __init__(self, engine: Engine) -> None:
        """Use this engine."""
        self._engine = engine

    async def save(
        self, new: NewFile, stream: AsyncIterator[bytes], *, max_bytes: int, in_thread: InThread
    ) -> StoredFile:
        """Save what the stream gives, and return the file; of one that breaks off or is too large nothing stays.

        Raises Problem 413 for more than `max_bytes`, and whatever the stream raises.
        """
        upload = _Upload(self._engine, new, max_bytes)
        try:
            async for piece in stream:
                if upload.takes(piece):
                    await in_thread(upload.write_whole_chunks)
            return await in_thread(upload.finish)  # type: ignore[no-any-return]
        except BaseException:
            # Also when the client has gone, and the request is cancelled.
            with anyio.CancelScope(shield=True):
                await in_thread(upload.drop)
            raise

    def write(self, new: NewFile, pieces: Iterable[bytes], *, max_bytes: int | None = None) -> StoredFile:
        """Do as `save` does, with pieces that are at hand."""
        upload = _Upload(self._engine, new, max_bytes)
        try:
            for piece in pieces:
                if upload.takes(piece):
                    upload.write_whole_chunks()
            return upload.finish()
        except BaseException:
            upload.drop()
            raise

    def get(self, workspace: str, file_id: str, *, assistants: frozenset[str] | None = None) -> StoredFile | None:
        """Return the file, None if there is none of this id."""
        with Session(self._engine) as session:
            query = select(StoredFile).where(StoredFile.id == file_id, _is_there(workspace))
            found = session.exec(query).one_or_none()
        return found if found is not None and within(found.assistants, assistants) else None

    def page(
        self,
        workspace: str,
        *,
        purposes: Iterable[str],
        limit: int,
        after: str | None = None,
        oldest_first: bool = False,
        assistants: frozenset[str] | None = None,
    ) -> tuple[list[StoredFile], bool]:
        """Return up to `limit` files of these purposes, newest first, and whether there are more.

        `after` is the id of the file that the page comes after, which may be deleted meanwhile; Problem 400 for
        one that never was.
        """
        query = select(StoredFile).where(_is_there(workspace), col(StoredFile.purpose).in_(list(purposes)))
        with Session(self._engine) as session:
            of_workspace = col(StoredFile.workspace) == workspace
            query = query.where(made_within(session, col(StoredFile.assistants), of_workspace, assistants))
            if after is not None:
                cursor = session.get(StoredFile, after)
                if cursor is None or cursor.workspace != workspace or not within(cursor.assistants, assistants):
                    raise Problem(Kind.BAD_REQUEST, f"after: there is no file '{after}'", param="after")
                query = query.where(_beyond(cursor, oldest_first=oldest_first))
            order = (col(StoredFile.created_at), col(StoredFile.id))
            query = query.order_by(*(each if oldest_first else each.desc() for each in order))
            rows = list(session.exec(query.limit(limit + 1)))
        return rows[:limit], len(rows) > limit

    def delete(self, workspace: str, file_id: str) -> bool:
        """Delete the file and return whether there was one: its row stays as a mark, its bytes and text go."""
        with self._engine.begin() as connection:
            gone = connection.execute(
                update(StoredFile)
                .where(col(StoredFile.id) == file_id, _is_there(workspace))
                .values(deleted_at=datetime.now(UTC), text=None)
            )
        if not gone.rowcount:
            return False
        # What a crash leaves here, retention deletes.
        delete_chunks(self._engine, file_id)
        return True

    def content(self, file: StoredFile) -> Iterator[bytes]:
        """Yield the bytes, up to 1 MiB at once; Problem 404 if the file is deleted before the last of them."""
        position, left = 0, file.size_bytes
        while left:
            with Session(self._engine) as session:
                chunk = session.get(FileChunk, (file.id, position))
            if chunk is None:
                raise Problem(Kind.NOT_FOUND, f"file {file.id} was deleted meanwhile", code="file_deleted")
            yield chunk.content
            left -= len(chunk.content)
            position += 1

    def lines(self, file: StoredFile, *, max_line_bytes: int) -> Iterator[bytes]:
        r"""Yield the lines without their ends (`\n` or `\r\n`); LineTooLongError for one that is longer."""
        rest = b""
        number = 1
        for piece in self.content(file):
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield _checked_line(line.removesuffix(b"\r"), number, max_line_bytes)
                number += 1
            _checked_line(rest, number, max_line_bytes)
        if rest:
            yield rest.removesuffix(b"\r")


async def pieces_of(upload: UploadFile) -> AsyncIterator[bytes]:
    """Yield a file that came in a form, a chunk at a time."""
    while piece := await upload.read(CHUNK_BYTES):
        yield piece


class _Upload:
    """A file that is being written."""

    def __init__(self, engine: Engine, new: NewFile, max_bytes: int | None) -> None:
        self._engine = engine
        self._new = new
        self._max_bytes = max_bytes
        self._position = 0
        self._size_bytes = 0
        self._buffer = bytearray()

    def takes(self, piece: bytes) -> bool:
        """Take more of the file; return whether there is a chunk to write."""
        self._size_bytes += len(piece)
        if self._max_bytes is not None and self._size_bytes > self._max_bytes:
            raise Problem(
                Kind.TOO_LARGE,
                f"the file has more than {self._max_bytes:,} bytes; send a smaller one",
                code="file_too_large",
            )
        self._buffer += piece
        return len(self._buffer) >= CHUNK_BYTES

    def write_whole_chunks(self) -> None:
        """Write as many chunks as are full, each in a transaction of its own."""
        while len(self._buffer) >= CHUNK_BYTES:
            with Session(self._engine) as session:
                session.add(self._chunk(bytes(self._buffer[:CHUNK_BYTES])))
                session.commit()
            del self._buffer[:CHUNK_BYTES]
            self._position += 1

    def finish(self) -> StoredFile:
        """Write the rest and, with it, the row; Problem 408 if retention took the upload for a lost one."""
        file = StoredFile(
            id=self._new.id,
            workspace=self._new.workspace,
            purpose=self._new.purpose,
            filename=storable(self._new.filename),
            mime_type=self._new.mime_type,
            size_bytes=self._size_bytes,
            text=self._new.text,
            assistants=self._new.assistants,
            created_at=datetime.now(UTC),
            expires_at=self._new.expires_at,
        )
        with Session(self._engine, expire_on_commit=False) as session:
            of_file = select(func.count()).select_from(FileChunk).where(FileChunk.file_id == file.id)
            if session.exec(of_file).one() != self._position:
                raise Problem(Kind.BODY_TIMED_OUT, "the upload stood still for too long; send the file again")
            if self._buffer:
                session.add(self._chunk(bytes(self._buffer)))
            session.add(file)
            session.commit()
        return file

    def drop(self) -> None:
        """Take back what was written, unless the file became whole just before it was given up."""
        with Session(self._engine) as session:
            whole = session.get(StoredFile, self._new.id) is not None
        if not whole:
            delete_chunks(self._engine, self._new.id)

    def _chunk(self, content: bytes) -> FileChunk:
        return FileChunk(file_id=self._new.id, position=self._position, created_at=datetime.now(UTC), content=content)


def _is_there(workspace: str) -> Any:
    """Return the condition that a file is the workspace's, not deleted, and not over."""
    lasts = or_(col(StoredFile.expires_at).is_(None), col(StoredFile.expires_at) > datetime.now(UTC))
    return and_(col(StoredFile.workspace) == workspace, col(StoredFile.deleted_at).is_(None), lasts)


def _beyond(cursor: StoredFile, *, oldest_first: bool) -> Any:
    at, file_id = col(StoredFile.created_at), col(StoredFile.id)
    same = at == cursor.created_at
    if oldest_first:
        return or_(at > cursor.created_at, and_(same, file_id > cursor.id))
    return or_(at < cursor.created_at, and_(same, file_id < cursor.id))


def _checked_line(line: bytes, number: int, max_line_bytes: int) -> bytes:
    if len(line) > max_line_bytes:
        raise LineTooLongError(number, max_line_bytes)
    return line
