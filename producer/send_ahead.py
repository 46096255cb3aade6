"""Sending in the background: one chunk is on its way while the next is made."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Thread
from types import TracebackType
from typing import Generic, Self, TypeVar

Chunk = TypeVar("Chunk")


class SendAhead(Generic[Chunk]):
    """Sends chunks in their order on a thread of its own; a context.

    At most `ahead` chunks wait, and those that do are handed to `send` together. After the
    first error of `send` nothing more is sent. Leaving the context waits until all is sent;
    if it is left by a KeyboardInterrupt or the like, only what is on its way is.
    """

    def __init__(self, send: Callable[[list[Chunk]], None], *, ahead: int) -> None:
        """Send by calling `send` on the thread."""
        self._send = send
        self._ahead = ahead
        # None ends the thread.
        self._waiting: Queue[Chunk | None] = Queue(maxsize=ahead)
        self._failure: Exception | None = None
        self._given_up = False
        # A daemon: a server that does not answer must not keep an interrupted process from its end.
        self._thread = Thread(target=self._run, name="send-ahead", daemon=True)

    def put(self, chunk: Chunk) -> None:
        """Have the chunk sent, once there is room for it; raises the error of one before."""
        self._waiting.put(chunk)
        self._raise_failure()

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for what has to be sent; raises the error of a chunk, unless there is one already."""
        if error is not None and not isinstance(error, Exception):
            self._given_up = True
            with suppress(Full):  # then it does not wait, and sees that it was given up
                self._waiting.put_nowait(None)
            return
        self._waiting.put(None)
        self._thread.join()
        if error is None:
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        more = True
        while more and not self._given_up:
            chunks, more = self._all_that_wait()
            # Taking goes on after a failure, or put() would wait for room for ever.
            if not chunks or self._failure is not None or self._given_up:
                continue
            try:
                self._send(chunks)
            except Exception as exc:  # noqa: BLE001 - it is raised where the chunks come from
                self._failure = exc

    def _all_that_wait(self) -> tuple[list[Chunk], bool]:
        """Return the chunks that wait, at least one, and whether more may come."""
        chunks: list[Chunk] = []
        next_one = self._waiting.get()
        while next_one is not None:
            chunks.append(next_one)
            if len(chunks) == self._ahead:
                return chunks, True
            try:
                next_one = self._waiting.get_nowait()
            except Empty:
                return chunks, True
        return chunks, False
