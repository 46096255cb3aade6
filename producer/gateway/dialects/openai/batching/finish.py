"""Ends a batch whose rows have ended: its files are written, then at once that they are there and how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from sqlalchemy import Engine
from sqlmodel import Session

from producer.entries import row_job_id
from producer.gateway.dialects.openai.batching.endings import end
from producer.gateway.dialects.openai.batching.lease import Lease
from producer.gateway.dialects.openai.batching.request_lines import MAX_LINE_BYTES, custom_id_of, numbered
from producer.gateway.dialects.openai.batching.result_files import ResultFile
from producer.gateway.dialects.openai.batching.result_lines import answered, never_enqueued
from producer.gateway.dialects.openai.batching.store import BatchStatus
from producer.gateway.files import Files
from producer.gateway.problem import Problem
from producer.records import Records
from schemas.batch import BatchState
from schemas.batch import BatchStatus as OurStatus
from schemas.outcome import Status
from schemas.result import JobResult
from schemas.tables import OpenAIBatch

_ENDS_AS = {
    BatchState.COMPLETED: BatchStatus.COMPLETED,
    BatchState.EXPIRED: BatchStatus.EXPIRED,
    BatchState.CANCELLED: BatchStatus.CANCELLED,
}


class Finish:
    """Finishes batches; in threads."""

    def __init__(self, engine: Engine, files: Files) -> None:
        """Read and write this database."""
        self._engine = engine
        self._files = files
        self._records = Records(engine)

    def finish(self, batch: OpenAIBatch, lease: Lease) -> None:
        """Write the files and the end, once; raises what `Lease.keep` does, and the database's errors."""
        ended = self._records.batch(batch.id)
        if ended is None:
            return
        self._say_finalizing(batch, ended, lease)
        output = ResultFile(self._engine, batch, lease, kind="output")
        error = ResultFile(self._engine, batch, lease, kind="error")
        for file in (output, error):
            file.begin()
        succeeded = failed = 0
        for result, line in self._rows(batch, ended):
            lease.keep()
            if result is not None and result.succeeded:
                succeeded += 1
                output.add(line)
            else:
                failed += result is not None and result.status not in (Status.CANCELLED, Status.EXPIRED)
                error.add(line)
        with Session(self._engine) as session:
            end(
                session,
                batch,
                lease,
                status=BatchStatus.FAILED if batch.errors else _ENDS_AS[ended.state],
                ended=ended,
                output_file_id=output.finish(session),
                error_file_id=error.finish(session),
                succeeded=succeeded,
                failed=failed,
                prompt_tokens=ended.prompt_tokens,
                completion_tokens=ended.completion_tokens,
            )
            session.commit()

    def _say_finalizing(self, batch: OpenAIBatch, ended: OurStatus, lease: Lease) -> None:
        if batch.finalizing_at is not None:
            return
        now = datetime.now(UTC)
        with Session(self._engine) as session:
            if ended.state is BatchState.CANCELLED:
                # Over the command line too.
                lease.write(session, status=BatchStatus.CANCELLING, cancelling_at=batch.cancelling_at or now)
            else:
                lease.write(session, status=BatchStatus.FINALIZING, finalizing_at=now)
            session.commit()

    def _rows(self, batch: OpenAIBatch, ended: OurStatus) -> Iterator[tuple[JobResult | None, dict[str, object]]]:
        """Yield what each row came to, in their order, and its line; None for one that was never enqueued."""
        missing = _CustomIds(self._files, batch)
        row = 0
        for job in self._records.latest_runs([batch.id]):
            if job.row is None:
                # Its record could not be read; the row of its batch is told as missing.
                continue
            for gap in range(row, job.row):
                yield None, never_enqueued(row_job_id(batch.id, gap), missing.of(gap), ended.state)
            row = job.row + 1
            result = job.result()
            yield result, answered(result)
        for gap in range(row, batch.total or 0):
            yield None, never_enqueued(row_job_id(batch.id, gap), missing.of(gap), ended.state)


class _CustomIds:
    """The custom_ids of rows that have no job, out of the input file, which is read only for these, and once."""

    def __init__(self, files: Files, batch: OpenAIBatch) -> None:
        self._files = files
        self._batch = batch
        self._lines: Iterator[tuple[int, str | None]] | None = None

    def of(self, row: int) -> str | None:
        """Return the custom_id of a row after those that were asked for before; None if the file is gone."""
        self._lines = self._lines or self._read()
        try:
            return next((custom_id for number, custom_id in self._lines if number == row), None)
        except Problem:
            return None

    def _read(self) -> Iterator[tuple[int, str | None]]:
        file = self._files.get(self._batch.workspace, self._batch.input_file_id)
        if file is not None:
            for line in numbered(self._files.lines(file, max_line_bytes=MAX_LINE_BYTES)):
                yield line.row, custom_id_of(line)
