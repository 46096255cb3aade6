"""Every error that a caller of the gateway can meet, whatever the dialect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What is wrong; the value is the HTTP status."""

    BAD_REQUEST = 400
    UNAUTHORIZED = 401
    OVER_BUDGET = 402
    FORBIDDEN = 403
    NOT_FOUND = 404
    METHOD_NOT_ALLOWED = 405
    BODY_TIMED_OUT = 408
    CONFLICT = 409
    TOO_LARGE = 413
    UNSUPPORTED_MEDIA = 415
    UNPROCESSABLE = 422
    RATE_LIMITED = 429
    # Nobody reads it: nginx's number, for logs and metrics.
    CLIENT_GONE = 499
    INTERNAL = 500
    NOT_IMPLEMENTED = 501
    PROVIDER_FAILED = 502
    UNAVAILABLE = 503
    TIMED_OUT = 504


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong in a request: where it stands, such as ("body", "messages", 0, "role"), and what.

    In a file that was sent, `line` (from 1) and `column` say where.
    """

    where: tuple[str | int, ...]
    what: str
    type: str = "value_error"
    line: int | None = None
    column: str | None = None

    @property
    def place(self) -> str:
        """Return where it stands as a path, such as `messages[0].role`; empty for the request as a whole."""
        path = ""
        for part in self.where[1:]:
            path += f"[{part}]" if isinstance(part, int) else (f".{part}" if path else str(part))
        return path


class Problem(Exception):  # noqa: N818 - RFC 9457's word
    """A request that cannot be answered as it asks: `message` says what is wrong, where, and how to mend it.

    `code` is a stable word for programs, `param` the field at fault, `faults` all of them, where there are
    several; `retry_after_s` says when the same request may succeed.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        faults: Sequence[Fault] = (),
        retry_after_s: float | None = None,
    ) -> None:
        """Keep the parts."""
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.code = code or kind.name.lower()
        self.param = param
        self.faults = tuple(faults)
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """Return the HTTP status."""
        return self.kind.value
