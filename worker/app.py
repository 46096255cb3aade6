"""The composition root: builds every concrete client and wires the worker together.

Dramatiq's master imports `worker.app:broker` in each worker process. What belongs to an
event loop is built when the process's loop runs, and closed while it still does.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import dramatiq
import httpx
import structlog
from dramatiq import Broker, Middleware, Worker
from dramatiq.asyncio import get_event_loop_thread
from dramatiq.middleware import AsyncIO
from pydantic import SecretStr
from redis import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from schemas import logs, names
from schemas.assistant import ProviderKind
from schemas.database import engine_for, ensure_tables
from schemas.lane_config import LaneConfig
from schemas.settings import Settings
from worker import actors
from worker.admission.admission import Admission
from worker.admission.drainer import Drainer
from worker.admission.releases import Releases
from worker.admission.sweeper import Sweeper
from worker.clock import Clock, end
from worker.errors import RedisAway, redis_away
from worker.events import Events, JobCrashed, ServiceFault, ToolCrashed
from worker.flow.converse import Conversation
from worker.flow.run import Flow
from worker.in_flight import InFlight
from worker.intake import BoundedBroker
from worker.limits.estimate_exchange import EstimateExchange
from worker.limits.learned import Estimates
from worker.limits.redis_limiter import HOLD_S, RedisLimiter
from worker.logs import LogSubscriber
from worker.metrics import Metrics
from worker.parent import die_with_parent, heed_first_signal
from worker.providers.agent_endpoint import AgentEndpoint
from worker.providers.base import Provider
from worker.providers.langdock import Langdock
from worker.providers.langtail import Langtail
from worker.providers.openai_compatible import OpenAICompatible, http_client
from worker.providers.schema_tools import SchemaTools
from worker.queue.leases import Leases
from worker.queue.queue import Hint, JobQueue
from worker.redis_batch import BatchedRedis
from worker.retention.rounds import Rounds
from worker.shutdown import CLOSE_WITHIN_S, Shutdown, threads_left
from worker.spend.spending import Spending
from worker.store.sql import SqlStore
from worker.store.watch import WatchedStore
from worker.tools.toolbox import WorkerToolbox
from worker.webhooks.backlog import Backlog
from worker.webhooks.deliver import WebhookSender
from worker.webhooks.deliveries import Deliveries
from worker.webhooks.due import DueWebhooks
from worker.webhooks.overdue import Overdue
from worker.webhooks.post import WebhookPost
from worker.webhooks.sql_threads import SqlThreads
from worker.webhooks.unrecorded import UnrecordedContent

# Redis may be away for this many tries, some 40 s, before an operation fails.
_REDIS_RETRIES = 80
# So long that a lease is renewed in time once Redis is back.
_REDIS_PAUSE_S = 0.5
_REDIS_CONNECTIONS = 64
# Without ASSISTQ_THREADS, as in a test of its own; `python -m worker` always says it.
_DEFAULT_CAPACITY = 64
_DELIVERIES_IN_FLIGHT = 64
# Sockets and files beside those of the calls in flight.
_SPARE_FILES = 256
_LEAVE_WITHIN_S = 2.0
_JOBS_TOLD = 20

_log = structlog.get_logger("assistq.worker")


@dataclass(frozen=True, slots=True)
class _Running:
    """What one process holds while it runs."""

    flow: Flow
    limiter: RedisLimiter
    leases: Leases
    admission: Admission
    clock: Clock
    queue: JobQueue
    store: SqlStore
    redis: BatchedRedis
    jobs: InFlight[Hint]
    webhooks: InFlight[str]
    webhook_threads: SqlThreads
    clients: tuple[httpx.AsyncClient | WebhookPost, ...]
    toolbox: WorkerToolbox
    exchange: EstimateExchange
    tasks: tuple[asyncio.Task[None], ...]
    process: str
    events: Events


class Runtime(Middleware):
    """Builds the parts when a worker process boots and closes them when it ends.

    Must stand after AsyncIO: hooks before the boot run in order, so that the loop is there,
    and hooks after the shutdown in reverse, so that it still is.
    """

    def __init__(self, settings: Settings) -> None:
        """Take the settings; nothing is opened yet."""
        self._settings = settings
        self._capacity = settings.threads or _DEFAULT_CAPACITY
        self._running: _Running | None = None
        self._shutdown = Shutdown(
            grace_s=settings.shutdown_grace_s, close_within_s=CLOSE_WITHIN_S, on_overrun=self._tell_what_is_left
        )
        # What a shutdown that takes too long waits for.
        self._waits_for = "the start"
        self.actors: actors.Actors | None = None

    def after_process_boot(self, broker: Broker) -> None:  # noqa: ARG002 - Dramatiq's signature
        """Tie this process to Dramatiq's master."""
        die_with_parent()
        heed_first_signal(self._shutdown.begin)
        _allow_open_files(2 * self._capacity + _SPARE_FILES)

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002
        """Build the parts on the process's event loop, before the first message."""
        self._running = _loop().run_coroutine(self._start())

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002
        """Release nothing more and end every wait; calls in flight go on."""
        self._shutdown.begin()
        self._waits_for = "the loops, and then Dramatiq's threads"
        _loop().run_coroutine(self._quiesce(self._parts))

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002
        """Wait for the calls in flight, then close all that was opened."""
        _loop().run_coroutine(self._stop(self._parts))

    def take_jobs(self, hints: Sequence[Hint]) -> None:
        """Run the jobs of these hints on the event loop; from any thread."""
        self._parts.jobs.take(hints)

    def take_deliveries(self, delivery_ids: Sequence[str]) -> None:
        """Attempt these deliveries on the event loop; from any thread."""
        self._parts.webhooks.take(delivery_ids)

    def has_room_for_jobs(self, timeout_s: float) -> bool:
        """Return whether one more job could run now, after up to `timeout_s`."""
        return self._parts.jobs.has_room(timeout_s)

    def has_room_for_deliveries(self, timeout_s: float) -> bool:
        """Return whether one more delivery could be attempted now, after up to `timeout_s`."""
        return self._parts.webhooks.has_room(timeout_s)

    async def _run_job(self, hint: Hint) -> None:
        try:
            await self._parts.flow.run(hint)
        finally:
            self._parts.admission.wake()

    @property
    def _parts(self) -> _Running:
        if self._running is None:
            raise RuntimeError("the worker process has not booted")
        return self._running

    async def _start(self) -> _Running:
        settings, capacity = self._settings, self._capacity
        engine = engine_for(settings.effective_database_url)
        await asyncio.to_thread(ensure_tables, engine)
        redis = BatchedRedis.from_url(
            settings.effective_redis_url,
            max_connections=2 * capacity + _REDIS_CONNECTIONS,
            socket_timeout=30,
            health_check_interval=30,
            retry=Retry(ExponentialBackoff(cap=_REDIS_PAUSE_S, base=0.05), _REDIS_RETRIES),
        )
        events = Events(Metrics().on_event, LogSubscriber().on_event)
        clock = Clock()
        queue = JobQueue(redis, events)
        leases = Leases(queue, events)
        database = SqlStore(engine)
        store = WatchedStore(database)
        client = http_client(connections=capacity, timeout_s=settings.provider_timeout_s)
        native, providers = _providers(settings, client)
        toolbox = WorkerToolbox(
            environment=os.environ,
            allows_private=settings.private_networks_allowed.__contains__,
            on_crash=lambda tool, error: events.emit(ToolCrashed(tool, error)),
        )
        process = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        lanes = LaneConfig.load(settings)
        limiter = RedisLimiter(
            redis,
            limits_of=lanes.limits_of,
            clock=clock,
            process=process,
            events=events,
            # The time-out is for each pause of a call; an answer that trickles may take longer.
            hold_s=max(HOLD_S, 4 * settings.provider_timeout_s),
        )
        estimates = Estimates()
        exchange = EstimateExchange(redis, estimates, events)
        conversation = Conversation(
            providers=providers,
            schema_tools=SchemaTools(native) if native else None,
            toolbox=toolbox,
            limiter=limiter,
            estimates=estimates,
            spending=Spending(redis, price_of=lanes.price_of, cap_of=lanes.cap_of, now=clock.now),
            leases=leases,
            queue=queue,
            clock=clock,
            events=events,
            max_attempts=settings.max_attempts,
        )
        flow = Flow(
            queue=queue,
            leases=leases,
            store=store,
            conversation=conversation,
            clock=clock,
            events=events,
            default_model=settings.model,
            max_attempts=settings.max_attempts,
            max_kills=settings.max_kills,
        )
        post = WebhookPost(
            allows_private=settings.private_networks_allowed.__contains__, max_connections=_DELIVERIES_IN_FLIGHT
        )
        content = UnrecordedContent(redis)
        webhook_threads = SqlThreads()
        sender = WebhookSender(
            post,
            deliveries=Deliveries(engine),
            threads=webhook_threads,
            events=events,
            body_of=content.body_of,
            ended=content.let_go,
        )
        due_webhooks = DueWebhooks(
            Backlog(engine),
            Overdue(engine),
            threads=webhook_threads,
            attempt=sender.attempt,
            hint=self._send_deliveries,
            events=events,
        )
        releases = Releases(redis)
        await releases.set_weights(lanes.weights)
        admission = Admission(
            process=process,
            capacity=capacity,
            queue=queue,
            releases=releases,
            redis=redis,
            send=self._send_jobs,
            events=events,
            store_is_away=lambda: store.is_away,
        )
        sweeper = Sweeper(
            queue=queue,
            store=store,
            free_lost_calls=limiter.expire,
            send_due_webhooks=due_webhooks.look,
            wake=admission.wake,
            events=events,
        )
        rounds = Rounds(
            engine=engine,
            connect=lambda: Redis.from_url(settings.effective_redis_url, socket_timeout=30),
            keep_days=settings.retention_days,
            process=process,
            events=events,
        )
        tasks = tuple(
            asyncio.create_task(loop)
            for loop in (
                leases.renew_forever(),
                admission.release_forever(),
                admission.beat_forever(),
                admission.listen_forever(),
                sweeper.run_forever(),
                Drainer(
                    queue=queue, run=flow.run, clock=clock, events=events, store_is_away=lambda: store.is_away
                ).run_forever(),
                limiter.listen_forever(),
                exchange.exchange_forever(),
                rounds.run_forever(),
            )
        )
        loop = asyncio.get_running_loop()
        return _Running(
            jobs=InFlight(
                self._run_job,
                capacity=capacity,
                on_crash=lambda hint, error: events.emit(JobCrashed(hint.job_id, None, error=error)),
                loop=loop,
            ),
            webhooks=InFlight(
                due_webhooks.deliver,
                capacity=_DELIVERIES_IN_FLIGHT,
                on_crash=lambda delivery_id, error: events.emit(
                    ServiceFault(part="webhooks", error=f"delivery {delivery_id}: {type(error).__name__}: {error}")
                ),
                loop=loop,
            ),
            webhook_threads=webhook_threads,
            flow=flow,
            limiter=limiter,
            leases=leases,
            admission=admission,
            clock=clock,
            queue=queue,
            store=database,
            redis=redis,
            clients=(client, post),
            toolbox=toolbox,
            exchange=exchange,
            tasks=tasks,
            process=process,
            events=events,
        )

    async def _quiesce(self, running: _Running) -> None:
        running.clock.stop()
        _renewal, *others = running.tasks
        await end(others)
        # A courtesy, for the heartbeat ends too: a Redis that is away, as after a kill of
        # everything else, holds the shutdown up for no longer.
        with suppress(TimeoutError, RedisAway):
            async with asyncio.timeout(_LEAVE_WITHIN_S):
                # No place any more, but alive: else others would take its calls for lost.
                left_s = self._shutdown.grace_left_s + _LEAVE_WITHIN_S
                await running.queue.heartbeat(running.process, capacity=0, ttl_s=left_s)

    async def _stop(self, running: _Running) -> None:
        # The leases are renewed until the last call has ended.
        self._waits_for = "the calls in flight"
        for in_flight in (running.jobs, running.webhooks):
            await in_flight.ended(within_s=self._shutdown.grace_left_s)
        await end(running.tasks)
        self._waits_for = "Redis"
        # Before all else that could hang: others go on with what was cut off.
        with suppress(TimeoutError, RedisAway):
            async with asyncio.timeout(_LEAVE_WITHIN_S):
                await running.leases.give_back(delay_s=0)
        await running.limiter.aclose()
        # What the last calls taught, the next worker shall know; a courtesy too.
        with suppress(TimeoutError, RedisAway):
            async with asyncio.timeout(_LEAVE_WITHIN_S):
                await running.queue.leave(running.process)
                await running.exchange.exchange(all_news=True)
        self._waits_for = "tools and connections"
        await running.toolbox.aclose()
        for client in running.clients:
            await client.aclose()
        await running.redis.aclose()
        self._waits_for = "the database"
        running.webhook_threads.close()
        await asyncio.to_thread(running.store.close)
        self._waits_for = "threads"

    def _tell_what_is_left(self) -> None:
        """Say why this process is ended by force; runs in a thread of its own."""
        # Dramatiq's pipe to the master may be closed by now.
        logs.configure(self._settings, stream=sys.__stderr__)
        jobs = self._running.leases.unfinished if self._running else []
        _log.error(
            "shutdown_overrun",
            waits_for=self._waits_for,
            jobs=jobs[:_JOBS_TOLD],
            jobs_count=len(jobs),
            threads=threads_left(),
        )

    async def _send_jobs(self, hints: list[Hint]) -> None:
        assert self.actors is not None  # noqa: S101 - set right after the broker, below
        with redis_away():
            await asyncio.to_thread(self.actors.send_jobs, hints, together=actors.hints_together(self._capacity))

    async def _send_deliveries(self, delivery_ids: list[str]) -> None:
        """Hint these deliveries to Dramatiq."""
        assert self.actors is not None  # noqa: S101
        with redis_away():
            await asyncio.to_thread(self.actors.send_deliveries, delivery_ids)


def _providers(
    settings: Settings, client: httpx.AsyncClient
) -> tuple[OpenAICompatible | None, dict[ProviderKind, Provider]]:
    """Return the OpenAI-compatible provider, and all that are configured, by the kind that assistants name."""
    providers: dict[ProviderKind, Provider] = {}
    native = None
    if settings.provider_base_url is not None:
        native = OpenAICompatible(
            client, base_url=settings.provider_base_url, api_key=_value(settings.provider_api_key)
        )
        providers["openai"] = native
    if settings.langdock_api_key is not None:
        providers["langdock"] = Langdock(
            client,
            base_url=settings.langdock_base_url,
            api_key=_value(settings.langdock_api_key),
            api=settings.langdock_api,
        )
    if settings.langtail_api_key is not None:
        providers["langtail"] = Langtail(
            client, base_url=settings.langtail_base_url, api_key=_value(settings.langtail_api_key)
        )
    if settings.agent_base_url is not None:
        providers["agent"] = AgentEndpoint(
            client, base_url=settings.agent_base_url, api_key=_value(settings.agent_api_key)
        )
    return native, providers


def _value(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _allow_open_files(wanted: int) -> None:
    """Raise this process's limit of open files, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted and (hard == resource.RLIM_INFINITY or soft < hard):
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _loop() -> dramatiq.asyncio.EventLoopThread:
    thread = get_event_loop_thread()
    if thread is None:
        raise RuntimeError("the AsyncIO middleware has not started its loop")
    return thread


def _build() -> BoundedBroker:
    settings = Settings.from_env()
    # Not the pipe to the master, who reads none while it boots, waits or is stopped: a full pipe would stop us.
    logs.configure(settings, stream=sys.__stderr__)
    runtime = Runtime(settings)
    redis_broker = BoundedBroker(
        has_room={
            names.JOBS_QUEUE: runtime.has_room_for_jobs,
            names.WEBHOOKS_QUEUE: runtime.has_room_for_deliveries,
        },
        url=settings.effective_redis_url,
        namespace=names.DRAMATIQ_NAMESPACE,
        middleware=[AsyncIO(), runtime],
        max_connections=_REDIS_CONNECTIONS,
        socket_timeout=30,
    )
    dramatiq.set_broker(redis_broker)
    runtime.actors = actors.declare(redis_broker, take_jobs=runtime.take_jobs, take_deliveries=runtime.take_deliveries)
    return redis_broker


broker = _build()
