"""One row in, one job out, or what is wrong with the row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from producer.bulk import strict_json
from producer.bulk.needs import Needs
from producer.bulk.records import Fault, Record
from producer.bulk.strict_json import JsonFaultError
from schemas import AssistantConfig, InputError, InvokeJob, Message, Rejection
from schemas.job import METADATA_KEY_MAX_CHARS, MetadataValue
from schemas.outcome import Code
from schemas.template import TemplateError

SPECIAL_COLUMNS = ("custom_id", "thread_id", "message", "metadata")
CUSTOM_ID_MAX_CHARS = 512

_ID_MEND = "use letters, digits and . _ : @ -, at most 200, beginning with a letter or digit"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot become a job.

    `row` counts the rows of the file from 0, `line` the physical lines from 1. `job` is
    what is left of the row, for a record that stands in for it in the results.
    """

    file: str
    row: int
    line: int
    column: str | None
    code: Code
    what: str
    mend: str
    job: InvokeJob

    @property
    def problem(self) -> InputError:
        """Return the row's problem as an error, with its text for a user."""
        return InputError(self.what, file=self.file, line=self.line, column=self.column, mend=self.mend)

    @property
    def rejection(self) -> Rejection:
        """Return what the record of a skipped row carries to the results."""
        return Rejection(code=self.code, error=str(self.problem))


class _RowFaultError(Exception):
    """Ends the making of a job."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault


class RowJobs:
    """Makes the jobs of one file for one assistant; knows the `custom_id`s it has seen.

    It keeps a hash of each `custom_id` and its line, about 100 bytes.
    """

    def __init__(self, assistant: AssistantConfig, *, needs: Needs, version: int | None, file: str) -> None:
        """Make jobs of `assistant`, pinned to `version` if one is given."""
        self._common: dict[str, Any] = {
            "assistant": assistant.assistant,
            "environment": assistant.environment,
            "version": version,
        }
        self._needs = needs
        self._message_needed = assistant.needs_a_message
        self._file = file
        self._lines_of_ids: dict[int, int] = {}

    def make(self, record: Record, *, row: int) -> InvokeJob | BadRow:
        """Return the job of a row, or what is wrong with it; empties the record's values."""
        content = record.content
        if isinstance(content, Fault):
            return self._bad(content, record, row=row)
        try:
            return self._job(content, record.line)
        except _RowFaultError as exc:
            return self._bad(exc.fault, record, row=row)

    def _job(self, variables: dict[str, Any], line: int) -> InvokeJob:
        custom_id = self._custom_id(variables.pop("custom_id", None), line)
        try:
            return self._checked_job(variables, custom_id)
        except ValidationError as exc:
            fault = _fault_of(exc)
        except _RowFaultError as exc:
            fault = exc.fault
        raise _RowFaultError(Fault(fault.what, fault.mend, column=fault.column, code=fault.code, custom_id=custom_id))

    def _checked_job(self, variables: dict[str, Any], custom_id: str | None) -> InvokeJob:
        thread_id = _name(variables.pop("thread_id", None), column="thread_id")
        message = variables.pop("message", None)
        metadata = variables.pop("metadata", None)
        if message is not None and not isinstance(message, str):
            raise _RowFaultError(_wrong_type("message", message, must="text"))
        if self._message_needed and not message:
            raise _RowFaultError(
                Fault(
                    "the assistant has no template and the row no message: there is nothing to send",
                    "write the message, or give the assistant a template",
                    column="message",
                    code=Code.NOTHING_TO_SEND,
                )
            )
        self._refuse_missing(variables)
        return InvokeJob(
            **self._common,
            custom_id=custom_id,
            thread_id=thread_id,
            variables=variables,
            messages=(Message(role="user", content=message),) if message else (),
            metadata=_metadata(metadata) if metadata is not None else {},
        )

    def _custom_id(self, value: Any, line: int) -> str | None:
        custom_id = _name(value, column="custom_id")
        if custom_id is None:
            return None
        if len(custom_id) > CUSTOM_ID_MAX_CHARS:
            raise _RowFaultError(
                Fault(
                    f"the id has {len(custom_id):,} characters",
                    f"shorten it to {CUSTOM_ID_MAX_CHARS}",
                    column="custom_id",
                )
            )
        first_line = self._lines_of_ids.setdefault(hash(custom_id), line)
        if first_line != line:
            raise _RowFaultError(
                Fault(
                    f"'{custom_id}' stands in line {first_line} too",
                    "give each row an id of its own",
                    column="custom_id",
                    custom_id=custom_id,
                )
            )
        return custom_id

    def _refuse_missing(self, variables: dict[str, Any]) -> None:
        try:
            path = self._needs.missing(variables)
        except TemplateError as exc:
            raise _RowFaultError(
                Fault(
                    f"the template cannot be rendered with this row: {exc}",
                    "mend the row's variables or the template",
                    code=Code.BAD_TEMPLATE,
                )
            ) from exc
        if path is not None:
            raise _RowFaultError(
                Fault(
                    f"variable '{path}', which the template needs, is missing",
                    f"add '{path}' to the row, or set `strict_variables: false` in the assistant",
                    column=path.split(".")[0],
                    code=Code.MISSING_VARIABLE,
                )
            )

    def _bad(self, fault: Fault, record: Record, *, row: int) -> BadRow:
        custom_id = fault.custom_id if fault.custom_id and len(fault.custom_id) <= CUSTOM_ID_MAX_CHARS else None
        return BadRow(
            file=self._file,
            row=row,
            line=record.line,
            column=fault.column,
            code=fault.code,
            what=fault.what,
            mend=fault.mend,
            job=InvokeJob(**self._common, custom_id=custom_id),
        )


def _name(value: Any, *, column: str) -> str | None:
    """Return an id as text; JSON may have it as a whole number. Empty is none."""
    if isinstance(value, str):
        return value or None
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise _RowFaultError(_wrong_type(column, value, must="text"))


def _metadata(value: Any) -> dict[str, MetadataValue]:
    """Return the metadata of a row: an object, or JSON text of one, of plain values."""
    if isinstance(value, str):
        if not value.strip():
            return {}
        try:
            value = strict_json.parse(value)
        except JsonFaultError as exc:
            raise _RowFaultError(
                Fault(
                    f"not valid JSON: {exc}",
                    'write a JSON object such as {"source": "web"}; in CSV, quote the field and double its quotes',
                    column="metadata",
                )
            ) from exc
    if not isinstance(value, dict):
        raise _RowFaultError(_wrong_type("metadata", value, must="a JSON object"))
    for key, entry in value.items():
        if not 0 < len(key) <= METADATA_KEY_MAX_CHARS:
            raise _RowFaultError(
                Fault(
                    f"key '{key[:80]}' has {len(key)} characters",
                    f"keep keys to 1 to {METADATA_KEY_MAX_CHARS} characters",
                    column="metadata",
                )
            )
        if not isinstance(entry, MetadataValue):
            raise _RowFaultError(
                Fault(
                    f"the value of '{key}' is {strict_json.type_name(entry)}",
                    "use text, a number, true or false",
                    column="metadata",
                )
            )
    return value


def _wrong_type(column: str, value: Any, *, must: str) -> Fault:
    return Fault(f"must be {must}, not {strict_json.type_name(value)}", f"write {must}", column=column)


def _fault_of(exc: ValidationError) -> Fault:
    """Translate what the job's own rules refuse; every check above comes first."""
    error = exc.errors(include_url=False)[0]
    column = str(error["loc"][0]) if error["loc"] else None
    if column == "thread_id":
        return Fault(f"{str(error['input'])[:80]!r} cannot be an id", _ID_MEND, column=column)
    return Fault(str(error["msg"]), "mend this value", column=column)
