"""The provider of this installation: the configured one, or a small real model on this machine."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from producer.embedded.capacity import LOCAL_SLOTS, usable_cpus
from producer.embedded.child import Child
from producer.embedded.kept import Kept
from producer.embedded.model_file import ensure_model_file
from producer.embedded.supervisor import ending
from schemas.errors import AssistqError, InputError
from schemas.settings import DEFAULT_LOCAL_MODEL, Settings

Say = Callable[[str], None]

START_TIMEOUT_S = 120.0
STOP_GRACE_S = 5.0
_HEALTH_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class ProviderEndpoint:
    """Where completions are asked for; `model` None: each assistant must name its own.

    `base_url` None: only services that host assistants are asked.
    """

    base_url: str | None
    model: str | None
    local: bool


@contextmanager
def served(settings: Settings, *, say: Say, needed: bool = True) -> Iterator[ProviderEndpoint]:
    """Yield the configured provider, or a local model server that answers, started again if it dies.

    Where no model is `needed`, none is started.

    `say` hears of a fetch and of such a death. InputError if neither a provider is configured
    nor the local model is installed; AssistqError if the server does not come up.
    """
    if settings.provider_base_url is not None:
        yield ProviderEndpoint(base_url=settings.provider_base_url, model=settings.model, local=False)
        return
    if not needed:
        yield ProviderEndpoint(base_url=None, model=settings.model, local=False)
        return
    if importlib.util.find_spec("xllamacpp") is None:
        raise InputError(
            "there is no provider",
            mend="set ASSISTQ_PROVIDER_BASE_URL (and ASSISTQ_PROVIDER_API_KEY), or: pip install 'assistq[local]'",
        )
    model = settings.model or DEFAULT_LOCAL_MODEL
    server = _Server(
        ensure_model_file(settings, say=say),
        model=model,
        log_file=settings.data_dir / "model-server.log",
    )

    def tell(child: Child, _early_deaths: int, pause_s: float) -> None:
        say(
            f"the local model server ended ({ending(child)}), starting it again in {pause_s:g} s;"
            f" its log: {server.log_file}"
        )

    kept = Kept(server.start, on_death=tell)
    try:
        yield ProviderEndpoint(base_url=f"{server.url}/v1", model=model, local=True)
    finally:
        kept.stop(grace_s=STOP_GRACE_S)


class _Server:
    """Starts the model server; each later start takes the first one's port again."""

    def __init__(self, model_file: Path, *, model: str, log_file: Path) -> None:
        self._model_file = model_file
        self._model = model
        self.log_file = log_file
        self.url = ""

    def start(self) -> Child:
        """Return the server's process once it answers."""
        heard = _FirstMessage()
        command = [sys.executable, "-m", "producer.embedded.model_server", "--model", str(self._model_file)]
        command += ["--alias", self._model, "--slots", str(LOCAL_SLOTS), "--threads", str(usable_cpus())]
        command += ["--port", str(urlsplit(self.url).port or 0)]
        child = Child(command, log_file=self.log_file, on_line=heard.on_line)
        try:
            self.url = self._await_url(child, heard)
            _check_health(self.url, log_file=self.log_file)
        except BaseException:
            child.stop(grace_s=STOP_GRACE_S)
            raise
        return child

    def _await_url(self, child: Child, heard: _FirstMessage) -> str:
        threading.Thread(target=heard.end_with, args=(child,), daemon=True).start()
        if not heard.arrived.wait(START_TIMEOUT_S):
            raise AssistqError(f"the local model did not load within {START_TIMEOUT_S:g} s; its log: {self.log_file}")
        if "url" in heard.message:
            return heard.message["url"]
        if "error" in heard.message:
            raise AssistqError(f"{heard.message['error']}; its log: {self.log_file}")
        hint = " (this processor may lack AVX2)" if child.exit_code == -signal.SIGILL else ""
        raise AssistqError(
            f"the local model server ended at its start: {ending(child)}{hint}; its log: {self.log_file}"
        )


class _FirstMessage:
    """The JSON line that a model server prints; empty if it ended without one."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.message: dict[str, str] = {}

    def on_line(self, line: str) -> None:
        """Take the first line that is a JSON object; the library may print others."""
        if self.arrived.is_set() or not line.startswith("{"):
            return
        try:
            self.message = json.loads(line)
        except ValueError:
            return
        self.arrived.set()

    def end_with(self, child: Child) -> None:
        """Stop waiting when the child has ended and all that it printed was read."""
        child.wait()
        self.arrived.set()


def _check_health(url: str, *, log_file: Path) -> None:
    # trust_env: a proxy of the environment must not be asked for loopback.
    with httpx.Client(trust_env=False, timeout=_HEALTH_TIMEOUT_S) as client:
        try:
            client.get(f"{url}/health").raise_for_status()
        except httpx.HTTPError as exc:
            raise AssistqError(f"the local model server does not answer: {exc}; its log: {log_file}") from exc
