"""Everything that a run needs on this machine: what is not configured is started, and ended again."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from producer.embedded import capacity, valkey
from producer.embedded.local_model import ProviderEndpoint, Say, served
from producer.embedded.supervisor import Output, Supervisor
from schemas.errors import AssistqError
from schemas.settings import Settings


@dataclass(frozen=True, slots=True)
class System:
    """The running parts; `failing` is set, with words, when a process type cannot keep alive.

    Each of the worker `processes` has up to `in_flight` calls in flight.
    """

    redis_url: str
    endpoint: ProviderEndpoint
    processes: int
    in_flight: int
    supervisor: Supervisor
    failing: _Failure

    def check(self) -> None:
        """Raise AssistqError if a process type keeps dying."""
        if self.failing.happened.is_set():
            raise AssistqError(self.failing.words)


class _Failure:
    """What the supervisor's threads tell the thread that watches."""

    def __init__(self) -> None:
        self.happened = threading.Event()
        self.words = ""

    def note(self, name: str, deaths: int, lines: list[str]) -> None:
        last = "\n  ".join(lines)
        self.words = f"the {name} process ended {deaths} times in a row; its last words:\n  {last}"
        self.happened.set()


@contextmanager
def running(
    settings: Settings,
    *,
    commands: Mapping[str, str],
    say: Say,
    output: Output | None = None,
    log_dir: Path | None = None,
    needs_model: bool = True,
) -> Iterator[System]:
    """Start the queue and the model where no URL is given, then the commands; end all of it in reverse.

    Lines of the commands go to `output`, or to files in `log_dir`. A system whose assistants
    are all hosted elsewhere `needs_model` not.
    """
    with served(settings, say=say, needed=needs_model) as endpoint, valkey.attached(settings, say=say) as redis_url:
        processes, in_flight = capacity.plan(settings, local=endpoint.local)
        failure = _Failure()
        supervisor = Supervisor(
            commands,
            env=_environment(
                settings, redis_url=redis_url, endpoint=endpoint, processes=processes, in_flight=in_flight
            ),
            output=output,
            log_dir=log_dir,
            on_failing=failure.note,
            grace_s=settings.shutdown_within_s,
        )
        try:
            supervisor.start()
            yield System(
                redis_url=redis_url,
                endpoint=endpoint,
                processes=processes,
                in_flight=in_flight,
                supervisor=supervisor,
                failing=failure,
            )
        finally:
            supervisor.stop()


def _environment(
    settings: Settings, *, redis_url: str, endpoint: ProviderEndpoint, processes: int, in_flight: int
) -> dict[str, str]:
    environment = {
        "ASSISTQ_REDIS_URL": redis_url,
        "ASSISTQ_DATABASE_URL": settings.effective_database_url,
        "ASSISTQ_DATA_DIR": str(settings.data_dir),
        "ASSISTQ_PROCESSES": str(processes),
        "ASSISTQ_THREADS": str(in_flight),
    }
    if endpoint.base_url is not None:
        environment["ASSISTQ_PROVIDER_BASE_URL"] = endpoint.base_url
    if endpoint.model is not None:
        environment["ASSISTQ_MODEL"] = endpoint.model
    return environment
