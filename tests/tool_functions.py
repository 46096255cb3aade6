"""Python tools of the tests, as another package would install them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from tests.processes import until
from worker.tools.python_functions import GROUP, PythonFunctions

DEADLINE_S = 10.0
# Set at the end of a test, so that no thread outlives it.
ENOUGH = threading.Event()
_meeting = threading.Barrier(2)


def functions(*names: str) -> PythonFunctions:
    """Return these functions of this module as if they were installed."""
    return PythonFunctions(lambda: [EntryPoint(name, f"{__name__}:{name}", GROUP) for name in names])


def echo(text: str) -> str:
    """Say it again."""
    return text


def fail() -> str:
    """Fail."""
    raise ValueError("broken")


def blurt(text: str) -> str:
    """Fail, and quote what it was given."""
    raise ValueError(f"cannot bear {text}")


class _Spiteful(str):
    __slots__ = ()

    def replace(self, *_: Any, **__: Any) -> str:
        raise ValueError(f"leave {self!s} alone")


def spite(text: str) -> str:
    """Answer with a text on which the worker trips, and which quotes what it was given."""
    return _Spiteful(text)


def hang() -> str:
    """Never answer."""
    ENOUGH.wait(DEADLINE_S)
    return "late"


async def hang_async() -> str:
    """Never answer."""
    await asyncio.Event().wait()
    return "late"


def meet() -> str:
    """Answer when two are here."""
    _meeting.wait(DEADLINE_S)
    return "met"


class Address(BaseModel):
    """Where somebody lives."""

    street: str
    number: int = 1


async def book(
    guest: Annotated[str, Field(description="Who comes.")],
    nights: int = 1,
    *,
    room: Literal["single", "double"] = "single",
    json: Address | None = None,
    _private: bool = False,
) -> dict[str, Any]:
    """Book a room.

    And nothing else.
    """
    await asyncio.sleep(0)
    return {"guest": guest, "nights": nights, "room": room, "json": json, "private": _private}


def leave() -> str:
    """Try to end the worker."""
    sys.exit("bye")


async def leave_async() -> str:
    """Try to end the worker."""
    sys.exit("bye")


class _Uncaught(BaseException):
    """What `except Exception` lets pass."""


def rage() -> str:
    """Raise what is no Exception."""
    raise _Uncaught("enough")


async def rage_async() -> str:
    """Raise what is no Exception."""
    raise _Uncaught("enough")


def stop() -> str:
    """Raise what a future does not take."""
    raise StopIteration("enough")


def many(*texts: str) -> str:
    """Take what a model cannot name."""
    return "".join(texts)


def odd() -> object:
    """Return what JSON cannot say."""
    return object()


def nul() -> str:
    """Return what PostgreSQL does not store."""
    return "a\x00b\ud800c"


def large() -> str:
    """Return too much."""
    return "é" * 100_000


def die(directory: str) -> str:
    """Tell that the worker is to be killed for the n-th time, `kill-<n>`, and kill it when there is `go-<n>`."""
    number = len(list(Path(directory).glob("kill-*"))) + 1
    Path(directory, f"kill-{number}").touch()
    until(Path(directory, f"go-{number}").exists, what="it may die", timeout_s=100)
    os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def block(directory: str) -> str:
    """Hold the thread for ever, the first time."""
    begun = Path(directory, "blocked")
    if not begun.exists():
        begun.touch()
        threading.Event().wait()
    return "done"


def linger() -> str:
    """Leave a thread behind for which Python waits."""
    threading.Thread(target=threading.Event().wait, name="lingering", daemon=False).start()
    return "left it"


class Counter:
    """A callable object."""

    def __call__(self, step: int = 1) -> int:
        """Count on."""
        return 41 + step


count = Counter()
not_a_function = 7
