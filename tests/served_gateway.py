"""The real gateway, `python -m producer.gateway`, in front of a worker at work (at_work.Works)."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx

from producer.gateway.keys import ApiKeys
from tests.at_work import ROOT, Works
from tests.processes import until


class ServedGateway:
    """The gateway's process; its keys are made straight in the database."""

    def __init__(self, works: Works, *, name: str = "gateway", **settings: str) -> None:
        """Prepare it; of two in front of one worker one has another name, for its log."""
        self.works = works
        self._settings = settings
        self.log = Path(works.directory) / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        self.keys = ApiKeys(self.works.engine)
        return self

    def __exit__(self, *exc: Any) -> None:
        self.stop()
        if exc[0] is None:
            assert not self.logged("request_crashed"), self.said
            assert "Traceback" not in self.said, self.said

    def start(self) -> None:
        """Start the process, and wait until it listens."""
        self.log.unlink(missing_ok=True)
        environment = {**self.works.environment, "ASSISTQ_HTTP_PORT": "0", **self._settings}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "producer.gateway"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        process = self.process
        until(lambda: "gateway_listening" in self.said or process.poll() is not None, what="the gateway listens")
        assert process.poll() is None, self.said
        (listening,) = self.logged("gateway_listening")
        self.url = listening["url"]

    def stop(self) -> None:
        """End the process as a process manager does, and wait for its end."""
        if self.process is not None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
            self.process.kill()
            self.process.wait()
            self.process = None

    def kill(self) -> None:
        """Kill -9 the process."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    @property
    def said(self) -> str:
        """Return what it wrote to its log."""
        return self.log.read_text("utf-8", errors="replace") if self.log.exists() else ""

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the events of this name that it logged so far."""
        lines = [line for line in self.said.splitlines() if line.startswith("{") and line.endswith("}")]
        return [each for each in map(json.loads, lines) if each["event"] == event]

    def key(self, workspace: str, **values: Any) -> str:
        """Return a new key of the workspace, as its owner sends it."""
        return self.keys.create(workspace, **values).text

    def client(self, workspace: str, **values: Any) -> httpx.Client:
        """Return a client that sends a new key of the workspace; the test closes it."""
        headers = {"authorization": f"Bearer {self.key(workspace, **values)}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)
