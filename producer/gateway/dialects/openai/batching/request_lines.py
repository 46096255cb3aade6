"""The lines of a batch's input file: each is checked whole, and becomes a job of one row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from producer.bulk.seen_ids import SeenIds
from producer.bulk.strict_json import JsonFaultError, parse, type_name
from producer.gateway.dialects.openai.batching.chat_jobs import ChatJobs
from producer.gateway.faults import faults_of
from producer.gateway.problem import Problem
from schemas.job import InvokeJob

MAX_REQUESTS = 50_000
MAX_FILE_BYTES = 200 * 1024 * 1024
MAX_LINE_BYTES = 16 * 1024 * 1024
_CUSTOM_ID_MAX_CHARS = 512


@dataclass(frozen=True, slots=True)
class LineFault:
    """What is wrong with a line, as OpenAI's `errors.data` tells it; lines count from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None

    def told(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


class LineFaultError(Exception):
    """The line is no request."""

    def __init__(self, fault: LineFault) -> None:
        """Keep the fault."""
        super().__init__(fault.message)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank; `row` is its place among these, from 0."""

    number: int
    row: int
    text: bytes


class RequestLines:
    """Makes jobs of the lines of one file."""

    def __init__(self, jobs: ChatJobs, endpoint: str) -> None:
        """Take requests to this endpoint."""
        self._jobs = jobs
        self._endpoint = endpoint
        self._seen = SeenIds()

    def job(self, line: Line) -> InvokeJob:
        """Return the job that the line asks for; LineFaultError if it is none, or has a custom_id that was seen."""
        request = _object(line)
        custom_id = self._custom_id(request, line)
        if (first := self._seen.first_line(custom_id, line.number)) is not None and first != line.number:
            what = f"custom_id {custom_id!r} is that of line {first} too; give each request one of its own"
            raise _fault("duplicate_custom_id", what, "custom_id", line)
        if request.get("method") != "POST":
            raise _fault("invalid_method", "method must be POST", "method", line)
        if request.get("url") != self._endpoint:
            what = f"url must be the batch's endpoint, {self._endpoint}"
            raise _fault("invalid_url", what, "url", line)
        body = request.get("body")
        if not isinstance(body, dict):
            raise _fault("missing_required_parameter", "body must be an object: the request itself", "body", line)
        job = self._job_of(body, line)
        return job.model_copy(
            update={"id": None, "custom_id": custom_id, "priority": None, "tell": "end", "keep_thread": False}
        )

    def _custom_id(self, request: dict[str, Any], line: Line) -> str:
        custom_id = request.get("custom_id")
        if not isinstance(custom_id, str) or not custom_id:
            raise _fault("missing_required_parameter", "custom_id must be a text", "custom_id", line)
        if len(custom_id) > _CUSTOM_ID_MAX_CHARS:
            what = f"custom_id has more than {_CUSTOM_ID_MAX_CHARS} characters"
            raise _fault("invalid_custom_id", what, "custom_id", line)
        return custom_id

    def _job_of(self, body: dict[str, Any], line: Line) -> InvokeJob:
        if body.get("stream"):
            raise _fault("invalid_request", "body.stream: a batch's request cannot stream", "body.stream", line)
        try:
            return self._jobs.job_of(body)
        except ValidationError as exc:
            told = [{**each, "loc": ("body", *each["loc"])} for each in exc.errors(include_url=False)]
            fault = faults_of(RequestValidationError(told, body=body))[0]
            param = f"body.{fault.place}" if fault.place else "body"
            raise _fault("invalid_request", f"{param}: {fault.what}", param, line) from exc
        except Problem as exc:
            param = f"body.{exc.param}" if exc.param else "body"
            raise _fault(exc.code, exc.message, param, line) from exc


def numbered(lines: Iterable[bytes]) -> Iterator[Line]:
    """Yield the lines that are not blank."""
    row = 0
    for number, text in enumerate(lines, 1):
        if text.strip():
            yield Line(number, row, text)
            row += 1


def custom_id_of(line: Line) -> str | None:
    """Return the custom_id of a line that was checked before."""
    return str(_object(line)["custom_id"])


def _object(line: Line) -> dict[str, Any]:
    text = line.text.removeprefix(b"\xef\xbb\xbf") if line.number == 1 else line.text
    try:
        value = parse(text.decode())
    except (JsonFaultError, UnicodeDecodeError) as exc:
        raise _fault("invalid_json_line", f"this line is no JSON: {exc}", None, line) from exc
    if not isinstance(value, dict):
        raise _fault("invalid_json_line", f"this line is {type_name(value)}, and must be an object", None, line)
    return value


def _fault(code: str, message: str, param: str | None, line: Line) -> LineFaultError:
    return LineFaultError(LineFault(code, message, param, line.number))
