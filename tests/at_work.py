"""The real worker at work: `python -m worker`, several processes, on a real Redis and a real database.

Many tests share one worker. Each has a Scene of its own: a workspace, an assistant and a
model, by which the shared provider tells whose script a request belongs to.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Self, cast

import httpx
import pytest
import redis
from sqlmodel import Session, SQLModel, col, select

from producer import Producer
from producer.assistants import Assistants
from schemas import InvokeJob, JobResult, Message
from schemas import names as redis_names
from schemas.assistant import AssistantConfig
from schemas.database import engine_for, ensure_tables
from schemas.tables import Job, Thread, ThreadMessage
from tests.loopback_provider import LoopbackProvider, Reply, Script, default_reply
from tests.processes import until
from tests.servers import OwnValkey

ROOT = Path(__file__).parents[1]
ENDS_WITHIN_S = 120.0
BOOTS_WITHIN_S = 60.0
PROCESSES, THREADS = 4, 4
# The workspace whose tools and webhooks may reach this machine.
AT_HOME = "home"
_numbers = itertools.count(1)


class Works:
    """A worker's processes, its queue and database, the provider that it asks, and a producer.

    Leaving it kills what is left, and fails if a job crashed on a fault of our own, unless one `may_crash`.
    """

    may_crash = False

    def __init__(self, directory: Path, *, servers_dir: Path, database_url: str | None = None, **settings: str) -> None:
        self.directory = directory
        self.database_url = database_url or f"sqlite:///{directory / 'assistq.db'}"
        # The path of a socket must be short.
        queue_dir = servers_dir / f"works-{next(_numbers)}"
        # Each write is on disk at once, so that no enqueue waits for it.
        self.queue = OwnValkey(queue_dir, appendfsync="always")
        self.scripts: dict[str, Script] = {}
        self.provider = LoopbackProvider(self._reply)
        self.redis: Any = redis.Redis.from_url(self.queue.url)
        self.settings = {
            "ASSISTQ_PROCESSES": str(PROCESSES),
            "ASSISTQ_THREADS": str(THREADS),
            "ASSISTQ_PRIVATE_NETWORK_WORKSPACES": AT_HOME,
            "ASSISTQ_RPM": "600000",
            "ASSISTQ_TPM": "1000000000",
            "ASSISTQ_METRICS_PORT": "0",
            "ASSISTQ_MAX_ATTEMPTS": "2",
            "ASSISTQ_DATA_DIR": str(directory / "data"),
            "ASSISTQ_REDIS_URL": self.queue.url,
            "ASSISTQ_DATABASE_URL": self.database_url,
            **settings,
        }
        self.log = directory / "worker.log"
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.queue.start()
        self.producer = Producer(self.redis)
        self.engine = engine_for(self.database_url)
        ensure_tables(self.engine)
        self.assistants = Assistants(self.engine)
        self.provider.__enter__()
        self.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.kill()
        self.provider.__exit__(*exc)
        self.producer.close()
        self.queue.__exit__()
        self.engine.dispose()
        if exc[0] is None and not self.may_crash:
            crashed = [event for event in self.logged() if event["event"] in {"job_crashed", "uncaught exception"}]
            assert not crashed, crashed

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of the worker."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ASSISTQ_")}
        path = [str(self._tools()), str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        return environment | {
            "ASSISTQ_PROVIDER_BASE_URL": self.provider.base_url,
            **self.settings,
            "PYTHONPATH": os.pathsep.join(path),
        }

    @property
    def capacity(self) -> int:
        """Return how many jobs a worker runs at once, with all its processes."""
        return int(self.settings["ASSISTQ_PROCESSES"]) * int(self.settings["ASSISTQ_THREADS"])

    def start(self) -> int:
        """Start a worker, beside those that run, wait until all its processes take jobs, and return its pid."""
        capacity = self.producer.capacity() + self.capacity
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "worker"],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        until(
            lambda: self.producer.capacity() == capacity or process.poll() is not None,
            what="every worker process takes jobs",
            timeout_s=BOOTS_WITHIN_S,
        )
        assert process.poll() is None, self.log.read_text("utf-8")
        return process.pid

    def kill(self) -> None:
        """Kill -9 the workers, with all their processes."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        self._processes.clear()
        self.redis.delete(redis_names.WORKERS)

    @property
    def process_group(self) -> int:
        """Return the group of the worker's processes, of which one must run."""
        (process,) = self._processes
        return process.pid

    def start_again(self) -> None:
        """Start the worker anew after a kill; the leases of the killed one are over at once."""
        leased = cast("list[bytes]", self.redis.zrange(redis_names.LEASES, 0, -1))
        for job_id in leased:
            self.redis.zadd(redis_names.LEASES, {job_id: 1})
        self.start()

    def kill_queue(self) -> None:
        """Kill -9 the Valkey server."""
        self.queue.kill()

    def start_queue_again(self) -> None:
        """Start the Valkey server on what its append-only file holds."""
        self.queue.start()

    @contextmanager
    def provider_away(self) -> Iterator[None]:
        """Refuse every connection to the provider meanwhile."""
        url = self.provider.base_url
        self.provider.__exit__(None, None, None)
        try:
            yield
        finally:
            self.provider = LoopbackProvider(self._reply, port=int(url.rsplit(":", 1)[1].split("/")[0]))
            self.provider.__enter__()

    def metrics(self) -> str:
        """Return what `/metrics` says now."""
        address = self.directory / "data" / "metrics" / str(self.process_group) / "address"
        until(address.exists, what="metrics are served")
        return httpx.get(f"http://{address.read_text().strip()}/metrics").raise_for_status().text

    @property
    def queue_dir(self) -> Path:
        """Return the directory of the Valkey server's files."""
        return self.queue.directory

    def processes(self) -> int:
        """Return how many processes take jobs."""
        return int(self.redis.hlen(redis_names.WORKERS))

    def results(self, job_ids: Iterable[str]) -> list[JobResult]:
        """Wait for the ends of these jobs."""
        return [self.producer.job(job_id).result(timeout_s=ENDS_WITHIN_S) for job_id in job_ids]

    def row(self, job_id: str) -> Job:
        """Return the job's row in SQL."""
        with Session(self.engine) as session:
            return session.exec(select(Job).where(Job.id == job_id)).one()

    def everything_in_sql(self) -> str:
        """Return the text of every row of every table."""
        with self.engine.connect() as connection:
            return repr([list(connection.execute(table.select())) for table in SQLModel.metadata.tables.values()])

    def logged(self, event: str | None = None) -> list[dict[str, Any]]:
        """Return what the worker logged so far, or the events of this name."""
        lines = (line for line in self.log.read_text("utf-8").splitlines() if line.startswith("{") and "}" in line)
        found = [json.loads(line) for line in lines]
        return [each for each in found if event in {None, each["event"]}]

    def _reply(self, body: Any, n: int) -> Reply:
        return self.scripts.get(_scene_of(body), default_reply)(body, n)

    def _tools(self) -> Path:
        """Return a directory in which a package of Python tools is installed."""
        site = self.directory / "site"
        info = site / "tools_of_the_tests-1.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        functions = ("echo", "blurt", "spite", "die", "block", "linger")
        tools = [f"{name} = tests.tool_functions:{name}" for name in functions]
        if not entry_points(group="assistq.tools", name="word_count"):
            # An editable install that was made before the tool was.
            tools.append("word_count = worker.tools.builtin:word_count")
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tools-of-the-tests\nVersion: 1\n")
        (info / "entry_points.txt").write_text("\n".join(["[assistq.tools]", *tools, ""]))
        return site


class Scene:
    """One test's part of a worker: a workspace, an assistant and a model that nobody else uses."""

    def __init__(self, works: Works, *, workspace: str | None = None) -> None:
        number = next(_numbers)
        self.works = works
        self.workspace = workspace or f"ws{number}"
        self.address = f"{self.workspace}/tests/a{number}"
        self.model = f"m{number}"

    def assistant(self, **fields: Any) -> AssistantConfig:
        """Store the assistant; it says no more than its instructions unless the fields do."""
        config = AssistantConfig.model_validate(
            {"assistant": self.address, "model": self.model, "instructions": "Help.", **fields}
        )
        self.works.assistants.apply(config)
        return config

    def plays(self, script: Script) -> None:
        """Let the provider answer requests for the scene's model so."""
        self.works.scripts[self.model] = script

    def replies(self, *replies: Reply) -> None:
        """Let the provider answer the requests for the scene's model with these, in order, and no more."""
        left = list(replies)
        lock = threading.Lock()

        def script(body: Any, n: int) -> Reply:
            with lock:
                assert left, f"one request more than was expected: {body}"
                return left.pop(0)

        self.plays(script)

    @property
    def asked(self) -> list[Any]:
        """Return the bodies of the requests for the scene's model, in order of arrival."""
        return [request.body for request in self.works.provider.requests if _scene_of(request.body) == self.model]

    def job(self, *said: str | Message, **fields: Any) -> InvokeJob:
        """Return a job of the assistant, with these messages."""
        messages = tuple(user(each) if isinstance(each, str) else each for each in said)
        return InvokeJob.model_validate({"assistant": self.address, "messages": messages, **fields})

    def enqueue(self, *said: str | Message, **fields: Any) -> str:
        """Enqueue a job of the assistant and return its id."""
        return self.works.producer.enqueue(self.job(*said, **fields)).id

    def run(self, *said: str | Message, **fields: Any) -> JobResult:
        """Run a job of the assistant to its end."""
        return self.works.results([self.enqueue(*said, **fields)])[0]

    def succeeds(self, *said: str | Message, **fields: Any) -> JobResult:
        """Run a job, which must succeed."""
        result = self.run(*said, **fields)
        assert result.succeeded, result
        return result

    def turns(self, thread_id: str | None) -> list[tuple[str, str]]:
        """Return role and text of each message that the thread keeps, in order."""
        return [(message.role, message.text) for message in self.thread(thread_id)]

    def thread(self, thread_id: str | None) -> list[Message]:
        """Return the messages that the thread keeps, in order."""
        query = (
            select(ThreadMessage)
            .where(ThreadMessage.workspace == self.workspace, ThreadMessage.thread_id == thread_id)
            .order_by(col(ThreadMessage.position))
        )
        with Session(self.works.engine) as session:
            return [Message.model_validate(row.message) for row in session.exec(query)]

    def has_thread(self, thread_id: str) -> bool:
        """Return whether there is such a thread."""
        with Session(self.works.engine) as session:
            return session.get(Thread, (self.workspace, thread_id)) is not None

    def snoozes(self, job_id: str) -> list[dict[str, Any]]:
        """Return the waits of a job, as the worker logged them."""
        return [event for event in self.works.logged("job_snoozed") if event["job_id"] == job_id]


def _scene_of(body: Any) -> str:
    """Return the model of the scene that a request belongs to, which may ask for a variant of it, `m1-large`."""
    return str(body["model"]).split("-", maxsplit=1)[0]


def user(content: str) -> Message:
    """Return a message of a user."""
    return Message(role="user", content=content)


def said(body: Any) -> list[tuple[str, Any]]:
    """Return role and content of each message of a request."""
    return [(message["role"], message["content"]) for message in body["messages"]]


def completion(
    content: str | None = None,
    *,
    calls: Iterable[tuple[str, str, Any]] = (),
    usage: tuple[int, int] = (10, 5),
    finish_reason: str | None = None,
    **message: Any,
) -> Reply:
    """Return a completion with calls (id, name, arguments: a value, or their text as it is), and usage."""
    tool_calls = [
        {
            "id": call_id,
            "type": "function",
            "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)},
        }
        for call_id, name, given in calls
    ]
    told = {"role": "assistant", "content": content, **message} | ({"tool_calls": tool_calls} if tool_calls else {})
    reason = finish_reason or ("tool_calls" if tool_calls else "stop")
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "scripted",
        "choices": [{"index": 0, "message": told, "finish_reason": reason}],
        "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)},
    }
    return Reply(body=json.dumps(body).encode())


@pytest.fixture(scope="package")
def works(servers_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Works]:
    """The worker that most tests share."""
    with Works(tmp_path_factory.mktemp("works"), servers_dir=servers_dir) as works:
        yield works


@pytest.fixture
def scene(works: Works) -> Scene:
    """A scene of the module's worker."""
    return Scene(works)
