"""Attachments as what a model is sent: a file's text with its name, an image as a data URL."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from uuid import UUID

from producer.gateway.access import Caller
from producer.gateway.files import Files
from producer.gateway.problem import Kind, Problem
from schemas.chat import ImagePart, ImageUrl, Message, Part, TextPart

PURPOSE = "attachment"
ATTACHMENTS_MAX = 50
# A job stands in Redis while it waits, with all that it sends.
_SENT_MAX_BYTES = 12 * 1024 * 1024


class Attached:
    """The attachments of one request, read once each, and not more than a job may carry."""

    def __init__(self, files: Files, caller: Caller, *, of_assistant: Iterable[UUID] = ()) -> None:
        """Read those that the caller sees, and those that a stored assistant which it may use has of its own."""
        self._files = files
        self._caller = caller
        self._of_assistant = frozenset(map(str, of_assistant))
        self._read: dict[str, Part] = {}
        self._times: dict[str, int] = {}

    def parts(self, ids: Sequence[UUID]) -> tuple[Part, ...]:
        """Return what the model is sent of these; Problem 404 for one that is not there, 400 for too many or much."""
        return tuple(self._part(str(each)) for each in ids)

    def _part(self, attachment_id: str) -> Part:
        part = self._read.get(attachment_id)
        if part is None:
            if len(self._read) == ATTACHMENTS_MAX:
                raise _too_much(f"more than {ATTACHMENTS_MAX} files")
            part = self._read[attachment_id] = self._found(attachment_id)
        self._times[attachment_id] = self._times.get(attachment_id, 0) + 1
        if sum(_size(self._read[key]) * times for key, times in self._times.items()) > _SENT_MAX_BYTES:
            raise _too_much(f"more than {_SENT_MAX_BYTES // 2**20} MiB")
        return part

    def _found(self, attachment_id: str) -> Part:
        seen_by = None if attachment_id in self._of_assistant else self._caller.assistants
        file = self._files.get(self._caller.workspace, attachment_id, assistants=seen_by)
        if file is None or file.purpose != PURPOSE:
            raise Problem(Kind.NOT_FOUND, f"there is no attachment {attachment_id}", code="attachment_not_found")
        if file.text is not None:
            return TextPart(text=f'<attachment name="{_name(file.filename)}">\n{file.text}\n</attachment>')
        image = base64.b64encode(b"".join(self._files.content(file))).decode()
        return ImagePart(image_url=ImageUrl(url=f"data:{file.mime_type};base64,{image}"))


def with_parts(message: Message, parts: Iterable[Part]) -> Message:
    """Return the message with the parts before its text; one of text alone stays one text."""
    text = [TextPart(text=message.text)] if message.text else []
    content: tuple[Part, ...] = (*parts, *text)
    texts = [part.text for part in content if isinstance(part, TextPart)]
    if len(texts) == len(content):
        return message.model_copy(update={"content": "\n\n".join(texts)})
    return message.model_copy(update={"content": content})


def _name(filename: str) -> str:
    return filename.replace('"', "'").replace("\n", " ")[:200]


def _size(part: Part) -> int:
    return len(part.text if isinstance(part, TextPart) else part.image_url.url)


def _too_much(what: str) -> Problem:
    return Problem(Kind.BAD_REQUEST, f"attachmentIds: {what} in one request; send fewer", code="too_many_attachments")
