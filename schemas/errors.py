"""The errors that a user of assistq meets.

    AssistqError
    ├── InputError        a file, assistant or job that the user must mend
    │   └── InputErrors   several such problems of one file, a line each
    ├── ProducerError     the queue could not take or answer (Redis away, batch unknown)
    │   └── QueueFull     the server's memory or disk is full: nothing of the refused call was written
    └── ResultTimeout     handle.result() waited as long as it was told to

Every message is one text that says what is wrong, where, and how to mend it.
"""

from __future__ import annotations

from collections.abc import Sequence


class AssistqError(Exception):
    """The base of every error that assistq raises on purpose."""


class InputError(AssistqError):
    """Input that was refused: what is wrong, where it stands and how to mend it."""

    def __init__(
        self,
        what: str,
        *,
        file: str | None = None,
        line: int | None = None,
        row: int | None = None,
        column: str | None = None,
        mend: str | None = None,
    ) -> None:
        """Build the message `FILE:LINE, column 'COLUMN': WHAT; MEND` from the parts that are known.

        `line` counts from 1 and is the physical line of the file. In a file without lines `row`, from 1,
        stands for it: `FILE, row ROW, column 'COLUMN': …`.
        """
        self.what = what
        self.file = file
        self.line = line
        self.row = row
        self.column = column
        self.mend = mend
        super().__init__(self._text())

    def _text(self) -> str:
        place = ""
        if self.file is not None:
            place = self.file if self.line is None else f"{self.file}:{self.line}"
        elif self.line is not None:
            place = f"line {self.line}"
        if self.row is not None:
            place = f"{place}, row {self.row}" if place else f"row {self.row}"
        if self.column is not None:
            place = f"{place}, column '{self.column}'" if place else f"column '{self.column}'"
        text = f"{place}: {self.what}" if place else self.what
        return f"{text}; {self.mend}" if self.mend else text


class InputErrors(InputError):  # noqa: N818 - it is several
    """Several problems of one input; its text has one line for each of `problems`."""

    def __init__(self, problems: Sequence[InputError]) -> None:
        """Keep the problems in the order in which they stand in the file; there is at least one."""
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ProducerError(AssistqError):
    """The queue could not take a job or answer a question."""


class QueueFull(ProducerError):  # noqa: N818 - the name says what happened
    """The queue's server has no memory or disk left; nothing of what it refused was written."""


class ResultTimeout(AssistqError, TimeoutError):  # noqa: N818 - a time-out is a TimeoutError by name too
    """The job had not ended when the caller's patience did; the job itself goes on."""
