"""A file of answers as it is written: in pieces, each in a transaction that only the holder of the lease can commit."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session

from producer.gateway.dialects.openai.batching.lease import Lease
from producer.gateway.files import CHUNK_BYTES
from schemas.file_retention import delete_chunks
from schemas.tables import FileChunk, OpenAIBatch, StoredFile

PURPOSE = "batch_output"


class ResultFile:
    """One of a batch's files. Nobody sees it before `finish`; what an earlier claim left of it goes with `begin`."""

    def __init__(self, engine: Engine, batch: OpenAIBatch, lease: Lease, *, kind: str) -> None:
        """Write the file of this kind, `output` or `error`."""
        self._engine = engine
        self._batch = batch
        self._lease = lease
        self._kind = kind
        self._buffer = bytearray()
        self._position = 0
        self._size_bytes = 0
        self.id = self._id_of(lease.claim)

    @property
    def is_empty(self) -> bool:
        """Return whether nothing was added."""
        return self._size_bytes == 0

    def begin(self) -> None:
        """Delete what claims before this one wrote and could not finish."""
        for claim in range(1, self._lease.claim):
            # In short transactions: other writers of the database wait, and the lease must not end meanwhile.
            delete_chunks(self._engine, self._id_of(claim), before_each=self._lease.keep)

    def add(self, line: dict[str, Any]) -> None:
        """Add a line."""
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        self._size_bytes += len(text)
        self._buffer += text
        while len(self._buffer) >= CHUNK_BYTES:
            with Session(self._engine) as session:
                self._lease.write(session)
                session.add(self._chunk(bytes(self._buffer[:CHUNK_BYTES])))
                session.commit()
            del self._buffer[:CHUNK_BYTES]
            self._position += 1

    def finish(self, session: Session) -> str | None:
        """Write what is left, and the file's row, in the session's transaction; return its id, None for no file."""
        if self.is_empty:
            return None
        if self._buffer:
            session.add(self._chunk(bytes(self._buffer)))
        now = datetime.now(UTC)
        lasts_s = self._batch.output_expires_after_s
        session.add(
            StoredFile(
                id=self.id,
                workspace=self._batch.workspace,
                purpose=PURPOSE,
                assistants=self._batch.assistants,
                filename=f"{self._batch.id}_{self._kind}.jsonl",
                mime_type="application/jsonl",
                size_bytes=self._size_bytes,
                created_at=now,
                expires_at=None if lasts_s is None else now + timedelta(seconds=lasts_s),
            )
        )
        return self.id

    def _chunk(self, content: bytes) -> FileChunk:
        return FileChunk(file_id=self.id, position=self._position, created_at=datetime.now(UTC), content=content)

    def _id_of(self, claim: int) -> str:
        # Another one for each claim: who lost the lease writes into a file that nobody will name.
        return f"file-{self._batch.id.removeprefix('batch_')}-{self._kind}-{claim}"
