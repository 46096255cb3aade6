"""Which worker process a connection comes from, by the kernel's table of sockets (Linux)."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from weakref import WeakKeyDictionary

from aiohttp import web

from ops.faults.parts import processes, session_of


class Callers:
    """Finds the process at the other end, once a connection; workers are the processes of the listed sessions."""

    def __init__(self, sessions_file: Path) -> None:
        """Read the sessions' ids from this file whenever they are needed: workers come and go."""
        self._sessions_file = sessions_file
        self._known: WeakKeyDictionary[asyncio.BaseTransport, int | None] = WeakKeyDictionary()

    def pid_of(self, request: web.BaseRequest) -> int | None:
        """Return the process that sent the request; None if it is gone already."""
        transport = request.transport
        if transport is None:
            return None
        if transport not in self._known:
            self._known[transport] = self._look(transport)
        return self._known[transport]

    def _look(self, transport: asyncio.BaseTransport) -> int | None:
        inode = _inode(local=transport.get_extra_info("peername")[1], remote=transport.get_extra_info("sockname")[1])
        if inode is None:
            return None
        name = f"socket:[{inode}]"
        return next((pid for pid in self._workers() if name in _open_files(pid)), None)

    def _workers(self) -> list[int]:
        sessions = {int(line) for line in self._sessions_file.read_text("ascii").split()}
        return [pid for pid in processes() if session_of(pid) in sessions]


def _inode(*, local: int, remote: int) -> str | None:
    """Return the inode of the socket between two ports of this machine, as its owner has it."""
    ends = f":{local:04X}", f":{remote:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if not Path(table).exists():
            continue
        for line in Path(table).read_text("ascii").splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(ends[0]) and fields[2].endswith(ends[1]):
                return fields[9]
    return None


def _open_files(pid: int) -> set[str]:
    """Return what the descriptors of a process lead to; those that are closed meanwhile are left out."""
    found: set[str] = set()
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.add(str(descriptor.readlink()))
    return found
