"""Deletes stored files from SQL: what is old, has expired or was deleted, and uploads that never became whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, delete, exists, func, or_, tuple_, update
from sqlmodel import col, select

from schemas.tables import FileChunk, StoredFile

# A chunk has up to 1 MiB, and other writers of SQLite wait for a transaction.
_STEP_CHUNKS = 32
_PAGE_FILES = 100
# No upload is silent for as long.
_UPLOAD_IS_LOST_AFTER = timedelta(days=1)


def delete_chunks(engine: Engine, file_id: str, *, before_each: Callable[[], None] = lambda: None) -> None:
    """Delete the file's bytes in short transactions; `before_each` may raise, to go no further."""
    of_file = select(FileChunk.file_id, FileChunk.position).where(FileChunk.file_id == file_id).limit(_STEP_CHUNKS)
    while True:
        before_each()
        with engine.connect() as connection:
            keys = [tuple(key) for key in connection.execute(of_file)]
        if not keys:
            return
        with engine.begin() as connection:
            key = tuple_(col(FileChunk.file_id), col(FileChunk.position))
            connection.execute(delete(FileChunk).where(key.in_(keys)))


class FileRetention:
    """One round of pruning of files."""

    def __init__(self, engine: Engine, *, before: datetime | None, dry_run: bool = False) -> None:
        """Prune files that were made or deleted before this time; with None only those that nobody can read."""
        self._engine = engine
        self._before = before
        self._dry_run = dry_run

    def steps(self) -> Iterator[int]:
        """Delete file by file; yield after each, 1."""
        now = datetime.now(UTC)
        over: Any = col(StoredFile.expires_at) < now
        if self._before is not None:
            # One that was made before was deleted since: its row is a mark that nobody needs.
            over = or_(over, col(StoredFile.created_at) < self._before)
        yield from self._each(select(StoredFile.id).where(over), StoredFile.id)
        there = exists().where(col(StoredFile.id) == col(FileChunk.file_id), col(StoredFile.deleted_at).is_(None))
        # Its youngest chunk: a body may trickle for longer.
        lost = func.max(FileChunk.created_at) < now - _UPLOAD_IS_LOST_AFTER
        uploads = select(FileChunk.file_id).where(~there).group_by(col(FileChunk.file_id)).having(lost)
        yield from self._each(uploads, FileChunk.file_id)

    def _each(self, query: Any, key: Any) -> Iterator[int]:
        last = ""
        while True:
            page = query.where(col(key) > last).order_by(key).limit(_PAGE_FILES)
            with self._engine.connect() as connection:
                ids = list(connection.execute(page).scalars())
            for file_id in ids:
                if not self._dry_run:
                    self._delete(file_id)
                yield 1
            if len(ids) < _PAGE_FILES:
                return
            last = ids[-1]

    def _delete(self, file_id: str) -> None:
        of_it = col(StoredFile.id) == file_id
        # First out of sight, so that nobody reads half of it.
        with self._engine.begin() as connection:
            connection.execute(update(StoredFile).where(of_it).values(deleted_at=datetime.now(UTC), text=None))
        delete_chunks(self._engine, file_id)
        with self._engine.begin() as connection:
            connection.execute(delete(StoredFile).where(of_it))
