"""Runs a function in a thread of its own, which nobody ever has to wait for."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(function: Callable[[], T]) -> T:
    """Return or raise what the function does; when cancelled, leave it to itself.

    A function that hangs would hold a thread of a shared pool for ever, and a pool's
    threads are joined when the process ends. This one is a daemon.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def tell(value: T | None, error: BaseException | None) -> None:
        if done.done():  # cancelled meanwhile
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(value)  # type: ignore[arg-type]  # None is a value of T here

    def work() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = context.run(function)
        except StopIteration as exc:
            # A future takes any exception but this one.
            error = RuntimeError(f"StopIteration: {exc}")
        except BaseException as exc:  # noqa: BLE001 - it belongs to the awaiting task
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop was closed, nobody waits
            loop.call_soon_threadsafe(tell, value, error)

    threading.Thread(target=work, name="tool", daemon=True).start()
    return await done
