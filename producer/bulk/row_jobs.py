"""One row in, one job out, or what is wrong with the row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from producer.bulk import strict_json
from producer.bulk.needs import Needs
from producer.bulk.records import Fault, Record
from producer.bulk.seen_ids import SeenIds
from producer.bulk.strict_json import JsonFaultError
from producer.written_job import WrittenJob
from schemas import AssistantConfig, InputError, InvokeJob, Rejection
from schemas.job import METADATA_KEY_MAX_CHARS, Identifier, MetadataValue
from schemas.outcome import Code
from schemas.template import TemplateError

SPECIAL_COLUMNS = ("custom_id", "thread_id", "message", "metadata")
CUSTOM_ID_MAX_CHARS = 512

# What a row's number is that of: a physical line of the file, or where it has none, the row itself.
Counted = Literal["line", "row"]

_IDENTIFIER: TypeAdapter[str] = TypeAdapter(Identifier)
_ID_MEND = "use letters, digits and . _ : @ -, at most 200, beginning with a letter or digit"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot become a job.

    `row` counts the rows of the file from 0, `line` the physical lines from 1, or the rows where
    `counted` says so. `job` is what is left of the row, for a record that stands in for it in the results.
    """

    file: str
    row: int
    line: int
    column: str | None
    code: Code
    what: str
    mend: str
    job: InvokeJob
    counted: Counted = "line"

    @property
    def problem(self) -> InputError:
        """Return the row's problem as an error, with its text for a user."""
        place = {self.counted: self.line}
        return InputError(self.what, file=self.file, column=self.column, mend=self.mend, **place)

    @property
    def rejection(self) -> Rejection:
        """Return what the record of a skipped row carries to the results."""
        return Rejection(code=self.code, error=str(self.problem))


class _RowFaultError(Exception):
    """Ends the making of a job."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault


class RowJobs:
    """Makes the jobs of one file for one assistant.

    What the rows share is checked and written once, as an InvokeJob. A row adds only the
    fields of its special columns and its variables, which are checked here, as strictly as
    InvokeJob does, and written by its serializer: a model a row would take four times as long.
    """

    def __init__(
        self,
        assistant: AssistantConfig,
        *,
        needs: Needs,
        version: int | None,
        file: str,
        seen_ids: SeenIds | None,
        counted: Counted = "line",
    ) -> None:
        """Make jobs of `assistant`, pinned to `version` if one is given.

        Without `seen_ids` no two rows are compared, as when a pass before has done it.
        """
        self._shared = InvokeJob(assistant=assistant.assistant, environment=assistant.environment, version=version)
        self._opening = self._shared.model_dump_json(exclude_defaults=True, by_alias=True).encode().removesuffix(b"}")
        self._workspace = self._shared.workspace
        self._route = self._shared.route
        self._needs = needs
        self._message_needed = assistant.needs_a_message
        self._file = file
        self._seen_ids = seen_ids
        self._counted = counted

    def make(self, record: Record, *, row: int) -> WrittenJob | BadRow:
        """Return the job of a row, or what is wrong with it; empties the record's values."""
        content = record.content
        if isinstance(content, Fault):
            return self._bad(content, record, row=row)
        try:
            return self._job(content, record.line)
        except _RowFaultError as exc:
            return self._bad(exc.fault, record, row=row)

    def _job(self, variables: dict[str, Any], line: int) -> WrittenJob:
        custom_id = self._custom_id(variables.pop("custom_id", None), line)
        try:
            return self._checked_job(variables, custom_id)
        except _RowFaultError as exc:
            fault = exc.fault
        raise _RowFaultError(Fault(fault.what, fault.mend, column=fault.column, code=fault.code, custom_id=custom_id))

    def _checked_job(self, variables: dict[str, Any], custom_id: str | None) -> WrittenJob:
        thread_id = _thread_id(variables.pop("thread_id", None))
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
        # What has a default is left out, and the order is InvokeJob's.
        own: dict[str, Any] = {}
        if custom_id is not None:
            own["custom_id"] = custom_id
        if thread_id is not None:
            own["thread_id"] = thread_id
        if variables:
            own["variables"] = variables
        if message:
            own["messages"] = ({"role": "user", "content": message},)
        if metadata is not None and (checked := _metadata(metadata)):
            own["metadata"] = checked
        return WrittenJob(
            json=self._opening + (b"," + to_json(own)[1:] if own else b"}"),
            workspace=self._workspace,
            route=self._route,
            thread_id=thread_id,
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
        if self._seen_ids is None:
            return custom_id
        first_line = self._seen_ids.first_line(custom_id, line)
        if first_line is not None:
            raise _RowFaultError(
                Fault(
                    f"'{custom_id}' stands in {self._counted} {first_line} too",
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
            job=self._shared.model_copy(update={"custom_id": custom_id} if custom_id else None),
            counted=self._counted,
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


def _thread_id(value: Any) -> str | None:
    thread_id = _name(value, column="thread_id")
    try:
        return None if thread_id is None else _IDENTIFIER.validate_python(thread_id)
    except ValidationError as exc:
        fault = Fault(f"{str(thread_id)[:80]!r} cannot be an id", _ID_MEND, column="thread_id")
        raise _RowFaultError(fault) from exc


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
