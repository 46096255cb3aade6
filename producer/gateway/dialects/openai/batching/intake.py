"""Takes a batch in: its whole file is checked before the first row is enqueued, each time line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session

from producer.client import Producer
from producer.gateway.dialects.openai.batching.chat_jobs import ChatJobs
from producer.gateway.dialects.openai.batching.endings import end_without_rows
from producer.gateway.dialects.openai.batching.lease import CalledOffError, Lease
from producer.gateway.dialects.openai.batching.request_lines import (
    MAX_FILE_BYTES,
    MAX_LINE_BYTES,
    MAX_REQUESTS,
    Line,
    LineFault,
    LineFaultError,
    RequestLines,
    numbered,
)
from producer.gateway.dialects.openai.batching.store import BatchStatus
from producer.gateway.files import Files, LineTooLongError
from producer.gateway.problem import Problem
from schemas.errors import ProducerError
from schemas.job import InvokeJob
from schemas.tables import Batch as OurBatch
from schemas.tables import OpenAIBatch, StoredFile

# OpenAI tells no more of a file's faults either.
FAULTS_TOLD = 100


class Intake:
    """Takes batches in; in threads."""

    def __init__(self, engine: Engine, files: Files, producer: Producer) -> None:
        """Read the files, enqueue over this producer."""
        self._engine = engine
        self._files = files
        self._producer = producer

    def take_in(self, batch: OpenAIBatch, lease: Lease) -> None:
        """Check and enqueue the batch's rows, or go on with that; it may be failed or cancelled meanwhile.

        Raises what `Lease.keep` does, and the errors of the database and of the queue: done again, it goes on.
        """
        if batch.status == BatchStatus.CANCELLING:
            self._called_off(batch, lease)
            return
        try:
            self._check_and_enqueue(batch, lease)
        except CalledOffError:
            self._called_off(batch, lease)
        except _SpoiltFileError as exc:
            self._spoilt(batch, lease, exc.fault)

    def _check_and_enqueue(self, batch: OpenAIBatch, lease: Lease) -> None:
        file = self._files.get(batch.workspace, batch.input_file_id)
        if file is None:
            raise _gone(batch)
        if batch.in_progress_at is None:
            total, faults = self._checked(batch, file, lease)
            if faults:
                end_without_rows(self._engine, batch, lease, status=BatchStatus.FAILED, faults=faults)
                return
            self._write(lease, status=BatchStatus.IN_PROGRESS, total=total)
        self._enqueue(batch, file, lease)

    def _checked(self, batch: OpenAIBatch, file: StoredFile, lease: Lease) -> tuple[int, list[LineFault]]:
        """Return how many requests the file has, and what is wrong with it."""
        if file.size_bytes > MAX_FILE_BYTES:
            return 0, [LineFault("file_too_large", f"the file has more than {MAX_FILE_BYTES:,} bytes; make several")]
        requests = self._requests(batch)
        faults: list[LineFault] = []
        rows = 0
        for line in self._lines(batch, file, lease, on_long_line=faults.append):
            rows += 1
            if rows > MAX_REQUESTS:
                what = f"the file has more than {MAX_REQUESTS:,} requests; make several batches"
                return rows, [*faults, LineFault("too_many_tasks", what)]
            try:
                requests.job(line)
            except LineFaultError as exc:
                faults.append(exc.fault)
            if len(faults) == FAULTS_TOLD:
                break
        if not rows and not faults:
            faults.append(LineFault("empty_file", "the file has no requests; write one to a line"))
        return rows, faults

    def _enqueue(self, batch: OpenAIBatch, file: StoredFile, lease: Lease) -> None:
        """Enqueue the rows, each at most once; those that are there already are passed over by the queue."""
        if not self._has_ended(batch.id):
            try:
                self._producer.enqueue_many(
                    self._jobs(batch, file, lease), batch_id=batch.id, expires_at=batch.expires_at
                )
            except ProducerError:
                # The queue takes no rows of a batch that was cancelled there, or whose time is over.
                status = self._producer.batch(batch.id).status()
                if status is None or not (status.cancelling or status.expiring or status.ended):
                    raise
        # Who cancels it after this look finds the batch in the queue, and cancels it there.
        if self._status(lease) == BatchStatus.CANCELLING:
            self._cancel_in_queue(batch.id)
        self._enqueued(lease)

    def _jobs(self, batch: OpenAIBatch, file: StoredFile, lease: Lease) -> Iterator[InvokeJob]:
        requests = self._requests(batch)
        for line in self._lines(batch, file, lease):
            try:
                yield requests.job(line)
            except LineFaultError as exc:
                # A gateway of another release found no fault in it.
                raise _SpoiltFileError(exc.fault) from exc

    def _requests(self, batch: OpenAIBatch) -> RequestLines:
        return RequestLines(ChatJobs(self._engine, batch), batch.endpoint)

    def _lines(
        self,
        batch: OpenAIBatch,
        file: StoredFile,
        lease: Lease,
        *,
        on_long_line: Callable[[LineFault], Any] | None = None,
    ) -> Iterator[Line]:
        try:
            for line in numbered(self._files.lines(file, max_line_bytes=MAX_LINE_BYTES)):
                lease.keep(while_wanted=True)
                yield line
        except LineTooLongError as exc:
            fault = LineFault(exc.code, exc.message, line=exc.number)
            if on_long_line is None:
                # A gateway of another release reads longer ones.
                raise _SpoiltFileError(fault) from exc
            on_long_line(fault)
        except Problem as exc:
            raise _gone(batch) from exc

    def _called_off(self, batch: OpenAIBatch, lease: Lease) -> None:
        """End a batch that is cancelled before all its rows were enqueued."""
        if self._producer.batch(batch.id).status() is None and not self._has_ended(batch.id):
            end_without_rows(self._engine, batch, lease, status=BatchStatus.CANCELLED)
            return
        self._cancel_in_queue(batch.id)
        self._enqueued(lease)

    def _spoilt(self, batch: OpenAIBatch, lease: Lease, fault: LineFault) -> None:
        """Fail a batch whose file cannot be read to its end; what was enqueued is cancelled."""
        if self._producer.batch(batch.id).status() is None and not self._has_ended(batch.id):
            end_without_rows(self._engine, batch, lease, status=BatchStatus.FAILED, faults=[fault])
            return
        self._cancel_in_queue(batch.id)
        self._enqueued(lease, errors=[fault.told()])

    def _has_ended(self, batch_id: str) -> bool:
        """Return whether the batch of ours has ended: the queue may have forgotten which rows it had."""
        with Session(self._engine) as session:
            return session.get(OurBatch, batch_id) is not None

    def _cancel_in_queue(self, batch_id: str) -> None:
        handle = self._producer.batch(batch_id)
        status = handle.status()
        if status is not None and not (status.ended or status.cancelling):
            handle.cancel()

    def _write(self, lease: Lease, *, status: BatchStatus, total: int) -> None:
        with Session(self._engine) as session:
            if lease.write(session) == BatchStatus.CANCELLING:
                raise CalledOffError
            lease.write(session, status=status.value, in_progress_at=datetime.now(UTC), total=total)
            session.commit()

    def _status(self, lease: Lease) -> str:
        with Session(self._engine) as session:
            status = lease.write(session)
            session.commit()
        return status

    def _enqueued(self, lease: Lease, **values: Any) -> None:
        """Say that no more rows will come, and give the lease back."""
        with Session(self._engine) as session:
            lease.write(session, enqueued_at=datetime.now(UTC), claimed_until=None, **values)
            session.commit()


class _SpoiltFileError(Exception):
    """The input file cannot be read as it could when the batch was made."""

    def __init__(self, fault: LineFault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def _gone(batch: OpenAIBatch) -> _SpoiltFileError:
    what = f"file {batch.input_file_id} was deleted, or has expired, before the batch had read it"
    return _SpoiltFileError(LineFault("file_not_found", what, "input_file_id"))
