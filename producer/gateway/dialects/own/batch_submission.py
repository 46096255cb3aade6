"""Enqueues a batch that came over HTTP: jobs of a JSON body, or the rows of a file, which are all checked before."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from producer.assistants import Assistants
from producer.bulk import rows
from producer.bulk.row_jobs import BadRow
from producer.entries import RejectedRow
from producer.gateway.access import Caller, refuse_unshared
from producer.gateway.dialects.own.batch_records import BatchRecords
from producer.gateway.dialects.own.batch_requests import JobBatchRequest, UploadTerms
from producer.gateway.dialects.own.continued_threads import refuse_threads_of_others
from producer.gateway.dialects.own.job_requests import address_of
from producer.gateway.dialects.own.uploads import Upload
from producer.gateway.faults import FAULTS_TOLD
from producer.gateway.idempotency import Identified
from producer.gateway.parts import Parts
from producer.gateway.problem import Fault, Kind, Problem
from producer.written_job import WrittenJob
from schemas.assistant import AssistantConfig
from schemas.batch import BatchStatus
from schemas.errors import InputError, ProducerError
from schemas.job import InvokeJob

Row = InvokeJob | WrittenJob | RejectedRow


class BatchSubmission:
    """Submits for one caller; its methods belong in a thread."""

    def __init__(self, parts: Parts, caller: Caller) -> None:
        """Use these parts."""
        self._parts = parts
        self._caller = caller
        self._records = BatchRecords(parts)

    def jobs(self, body: JobBatchRequest, known: Identified | None) -> BatchStatus:
        """Enqueue the jobs of the body, unless a request with its key has; Problem for one that cannot be."""
        made = self._made_before(known)
        if made is not None:
            return made
        jobs = [
            job.to_job(self._caller, default=body.assistant, where=("jobs", number))
            for number, job in enumerate(body.jobs)
        ]
        self._refuse_threads_of_others(jobs)
        return self._enqueued(jobs, known, label=body.label, **body.terms())

    def rows(self, upload: Upload, asked: UploadTerms, known: Identified | None) -> BatchStatus:
        """Enqueue the rows of the file, likewise; with a bad one nothing, unless bad ones are to be skipped."""
        made = self._made_before(known)
        if made is not None:
            return made
        config, version = self._assistant(asked)
        try:
            checked = rows.check(upload.path, config, name=upload.name)
        except InputError as exc:
            raise _bad_file(upload, [_fault(exc)]) from exc
        if checked.bad_total and (not asked.skip_bad_rows or checked.bad_total == checked.rows):
            raise _bad_file(
                upload,
                [_fault(bad.problem) for bad in checked.bad[:FAULTS_TOLD]],
                bad=checked.bad_total,
                of=checked.rows,
            )
        all_good = not checked.bad_total
        if self._caller.assistants is not None:
            self._refuse_threads_of_others(_jobs(upload, config, version, all_good=all_good))
        jobs = _jobs(upload, config, version, all_good=all_good)
        label = upload.name if asked.label is None else asked.label
        return self._enqueued(jobs, known, label=label, **asked.terms())

    def _assistant(self, asked: UploadTerms) -> tuple[AssistantConfig, int]:
        if asked.assistant is None:
            raise Problem(
                Kind.BAD_REQUEST,
                "a file needs `assistant`: for whom its rows are",
                code="invalid_request",
                param="assistant",
            )
        address = address_of(asked.assistant, self._caller)
        refuse_unshared(address, self._caller)
        try:
            return Assistants(self._parts.engine).config(address, environment=asked.environment, version=asked.version)
        except InputError as exc:
            raise Problem(Kind.NOT_FOUND, exc.what, code="assistant_unknown", param="assistant") from exc

    def _refuse_threads_of_others(self, jobs: Iterable[Row]) -> None:
        ids = (each.thread_id for each in jobs if not isinstance(each, RejectedRow))
        refuse_threads_of_others(self._parts, self._caller, ids)

    def _made_before(self, known: Identified | None) -> BatchStatus | None:
        """Return the batch of an earlier request with this key; None if there is none, or it was interrupted."""
        if known is None:
            return None
        with suppress(Problem):
            status = self._records.find(known.batch_id, self._caller)
            return None if status.total is None else status
        return None

    def _enqueued(self, jobs: Iterable[Row], known: Identified | None, **terms: Any) -> BatchStatus:
        batch_id = f"batch_{uuid.uuid4().hex}" if known is None else known.batch_id
        try:
            self._parts.producer.enqueue_many(jobs, batch_id=batch_id, within=self._caller.made_with, **terms)
        except ProducerError:
            # Another request with this key may have enqueued it, and it may have ended, meanwhile.
            made = self._made_before(known)
            if made is not None:
                return made
            if known is None:
                # Nobody can go on with it: what was taken must not run.
                with suppress(ProducerError):
                    self._parts.producer.batch(batch_id).cancel()
            raise
        return self._records.find(batch_id, self._caller)


def _jobs(upload: Upload, config: AssistantConfig, version: int, *, all_good: bool) -> Iterator[Row]:
    for entry in rows.read_rows(upload.path, config, version=version, unique_ids=all_good, name=upload.name):
        yield RejectedRow(job=entry.job, rejection=entry.rejection) if isinstance(entry, BadRow) else entry


def _fault(error: InputError) -> Fault:
    what = f"{error.what}; {error.mend}" if error.mend else error.what
    return Fault(where=("body",), what=what, line=error.line, column=error.column)


def _bad_file(upload: Upload, faults: list[Fault], *, bad: int = 1, of: int = 0) -> Problem:
    if of:
        what = f"{bad:,} of {of:,} rows of {upload.name} are bad: {_placed(faults[0])}"
        mend = "nothing was enqueued; mend them" + (", or say skip_bad_rows=true" if bad < of else "")
    else:
        what, mend = f"{upload.name}: {_placed(faults[0])}", "nothing was enqueued"
    return Problem(Kind.BAD_REQUEST, f"{what}. {mend}", code="bad_rows", faults=faults)


def _placed(fault: Fault) -> str:
    place = ", ".join(
        [
            *([f"line {fault.line}"] if fault.line is not None else []),
            *([f"column '{fault.column}'"] if fault.column is not None else []),
        ]
    )
    return f"{place}: {fault.what}" if place else fault.what
