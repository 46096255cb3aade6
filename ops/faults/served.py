"""What provider and tool server have in common: each request in a log when it comes and when its reply has left."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from ops.faults.callers import Callers
from ops.faults.facts import Fate, Log, now_s
from ops.faults.stage import HOST, Stage

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Served:
    """The exchanges of one server process, and the way to cut them off."""

    def __init__(self, stage: Stage, part: str) -> None:
        """Write to the part's log."""
        self._log = Log(stage.log_of(part))
        self._callers = Callers(stage.sessions_file)
        self._numbers = itertools.count()
        self._in_flight: dict[int, web.Request] = {}
        self._cut: set[int] = set()
        self._to_cut = 0

    def arrive(self, request: web.Request, **facts: Any) -> int:
        """Record a request."""
        number = next(self._numbers)
        self._in_flight[number] = request
        pid = self._callers.pid_of(request)
        self._log.write(at_s=now_s(), n=number, server=os.getpid(), pid=pid, **facts)
        return number

    async def reply(self, number: int, body: bytes, *, status: int = 200, refused: bool = False) -> web.StreamResponse:
        """Send the reply, unless it is to be cut, and record how that went."""
        request = self._in_flight.pop(number)
        transport = request.transport
        response = web.StreamResponse(status=status)
        response.content_length = len(body)
        response.content_type = "application/json"
        fate: Fate = "refused" if refused else "whole"
        if number in self._cut:
            fate = "cut"
        elif transport is None or transport.is_closing():
            fate = "gone"
        else:
            try:
                await response.prepare(request)
                if self._to_cut > 0 and not refused:
                    self._to_cut -= 1
                    await response.write(body[: len(body) // 2])
                    transport.abort()
                    fate = "cut"
                else:
                    await response.write(body)
                    await response.write_eof()
            except ConnectionError:
                fate = "gone"
        self._log.write(at_s=now_s(), n=number, server=os.getpid(), fate=fate)
        return response

    def cut_now(self) -> int:
        """Cut all connections with a request whose reply has not begun; return how many."""
        cut = [number for number, request in self._in_flight.items() if request.transport is not None]
        for number in cut:
            transport = self._in_flight[number].transport
            if transport is not None:
                self._cut.add(number)
                transport.abort()
        return len(cut)

    def cut_next(self, count: int) -> None:
        """Cut the next replies in the middle."""
        self._to_cut += count


def serve(app: web.Application, *, port: int) -> None:
    """Serve until SIGTERM."""
    # A port that was just left by a killed server is taken again at once.
    web.run_app(
        app,
        host=HOST,
        port=port,
        access_log=None,
        print=None,
        shutdown_timeout=0.2,
        reuse_address=True,
        handle_signals=True,
    )


async def takes(seconds: float) -> None:
    """Wait as a slow server does."""
    await asyncio.sleep(seconds)
