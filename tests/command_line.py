"""The command line as a user meets it: real processes in an installation of their own."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from schemas import Settings
from tests.loopback_provider import LoopbackProvider
from tests.processes import until

ASSISTQ = Path(sys.executable).with_name("assistq")

# 8 calls at once in each of 2 processes, and limits that no test meets.
PROCESSES, THREADS = 2, 8
IN_FLIGHT_AT_MOST = PROCESSES * THREADS
BASE_ENVIRONMENT = {
    "ASSISTQ_PROCESSES": str(PROCESSES),
    "ASSISTQ_THREADS": str(THREADS),
    "ASSISTQ_RPM": "60000",
    "ASSISTQ_TPM": "100000000",
    "ASSISTQ_METRICS_PORT": "0",
    "ASSISTQ_HTTP_PORT": "0",
    # The receivers of webhooks are on this machine.
    "ASSISTQ_PRIVATE_NETWORK_WORKSPACES": "demo",
}

SENTIMENT = """\
assistant: demo/reviews/sentiment
model: m1
template:
  - {role: user, content: "Review: {{ review }}"}
output: {type: enum, enum: [positive, negative]}
max_tokens: 8
"""


# Where this suite runs in the background Ctrl-C is ignored, which the commands would inherit. Only here, in the
# main thread, it can be changed.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Return what stdout holds, which must be one JSON document and nothing else."""
        return json.loads(self.out)

    def refused(self, *parts: str) -> None:
        """Assert that it ended with an error for a user, which has each of the parts."""
        assert self.code == 1, self.err
        assert self.out == ""
        message = self.err[self.err.index("error: ") :]
        for part in parts:
            assert part in message, f"{part!r} is not in:\n{message}"


class Running:
    """A command that runs, in a session of its own; its output goes to files."""

    def __init__(self, command: list[str], *, env: dict[str, str], cwd: Path) -> None:
        number = len(list(cwd.glob(".out-*")))
        self._out, self._err = cwd / f".out-{number}", cwd / f".err-{number}"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, cwd=cwd, start_new_session=True
            )

    @property
    def out(self) -> str:
        """Return what stands on stdout so far."""
        return self._out.read_text("utf-8", errors="replace")

    @property
    def err(self) -> str:
        """Return what stands on stderr so far; a traceback there fails the test."""
        text = self._err.read_text("utf-8", errors="replace")
        assert "Traceback" not in text, text
        return text

    def says(self, text: str, *, timeout_s: float = 30.0) -> None:
        """Wait until stderr has the text."""
        until(
            lambda: text in self.err or self.process.poll() is not None, what=f"it says {text!r}", timeout_s=timeout_s
        )
        assert text in self.err, self.err

    def interrupt(self) -> None:
        """Press Ctrl-C: the signal goes to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ended(self, *, timeout_s: float = 60.0) -> Ended:
        """Wait for the end."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it still runs after {timeout_s:g} s; it said:\n{self.err}\n{self.out}") from None
        return Ended(code=code, out=self.out, err=self.err)


class Installation:
    """A directory to work in, a data directory, and the settings of `assistq` there."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory = directory
        self.data_dir = directory / "data"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("ASSISTQ_")}
        self.env |= {**BASE_ENVIRONMENT, "ASSISTQ_DATA_DIR": str(self.data_dir), **settings}
        self._started: list[Running] = []

    def file(self, name: str, content: str | bytes) -> Path:
        """Write a file in the directory."""
        path = self.directory / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def reviews(self, count: int, name: str = "reviews.csv") -> Path:
        """Write a file of reviews: each third one is bad, the others are good; each fourth label is wrong."""
        rows = ["custom_id,review,label"]
        for number in range(count):
            good = number % 3 != 0
            label = "positive" if good == (number % 4 != 0) else "negative"
            rows.append(f"r{number},a {'good' if good else 'bad'} thing no {number};,{label}")
        return self.file(name, "\n".join(rows) + "\n")

    def sentiment(self, name: str = "sentiment.yaml") -> Path:
        """Write the assistant file for the reviews."""
        return self.file(name, SENTIMENT)

    def start(self, *arguments: object, env: Mapping[str, str] | None = None) -> Running:
        """Start `assistq` with these arguments."""
        command = [str(ASSISTQ), *map(str, arguments)]
        running = Running(command, env={**self.env, **(env or {})}, cwd=self.directory)
        self._started.append(running)
        return running

    def run(self, *arguments: object, env: Mapping[str, str] | None = None, timeout_s: float = 60.0) -> Ended:
        """Run `assistq` with these arguments to its end."""
        return self.start(*arguments, env=env).ended(timeout_s=timeout_s)

    def results(self, name: str = "reviews-results.csv") -> list[dict[str, str]]:
        """Read a CSV of results."""
        with (self.directory / name).open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))

    @property
    def settings(self) -> Settings:
        """Return the settings that its commands have."""
        return Settings(data_dir=self.data_dir)

    @property
    def socket(self) -> Path:
        """Return where its embedded Valkey listens."""
        return Path(self.settings.embedded_redis_url.removeprefix("unix://"))

    def alive(self) -> list[psutil.Process]:
        """Return every process of this installation that runs, whoever its parent is by now; no zombies."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def alive_with(self, word: str) -> list[psutil.Process]:
        """Return those whose command has the word in it."""
        found = []
        for process in self.alive():
            try:
                if any(word in part for part in process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def nothing_left(self, *, timeout_s: float = 0.5) -> None:
        """Assert that no process and no socket is there any more."""
        until(lambda: not self.alive(), what="every process has ended", timeout_s=timeout_s)
        assert not self.socket.exists()

    def kill_all(self) -> int:
        """Kill -9 everything, as a machine that dies does; return how many it were."""
        killed: set[int] = set()
        # Until nobody is left: what was started in the meantime has to go too.
        while victims := self.alive():
            for process in victims:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
                killed.add(process.pid)
        for running in self._started:
            running.process.wait(10)
        return len(killed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill_all()
        self.socket.unlink(missing_ok=True)
        if self.socket.parent.exists():
            self.socket.parent.rmdir()

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            # Valkey writes its title over its environment, but works in the data directory.
            ours = process.environ().get("ASSISTQ_DATA_DIR") == str(self.data_dir)
            return ours or Path(process.cwd()).is_relative_to(self.data_dir)
        except psutil.Error:
            return False


def asked_rows(provider: LoopbackProvider) -> list[str]:
    """Return the prompt of each request that the provider got, in order of arrival."""
    bodies = [request.body for request in provider.requests]
    # One that was cut off by a kill has no body.
    return [body["messages"][-1]["content"] for body in bodies if body is not None]


@pytest.fixture
def provider() -> Iterator[LoopbackProvider]:
    """A provider that answers at once, unless the test says otherwise."""
    with LoopbackProvider() as provider:
        yield provider


@pytest.fixture
def shell(tmp_path: Path, provider: LoopbackProvider) -> Iterator[Installation]:
    """A new installation whose only setting of note is the provider's URL."""
    with Installation(tmp_path, ASSISTQ_PROVIDER_BASE_URL=provider.base_url) as installation:
        yield installation
