"""Serves `/metrics`: what all worker processes counted, and what Redis holds at that moment.

Runs in a process of its own, as a fork function of the Dramatiq command line.
"""

from __future__ import annotations

import heapq
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import redis
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from pydantic import ValidationError
from redis.backoff import NoBackoff
from redis.retry import Retry

from schemas import logs, names
from schemas.errors import InputError
from schemas.lane import LaneFault, LaneStatus
from schemas.scripts import read_script
from schemas.settings import Settings
from worker.limits import turns

HOST = "127.0.0.1"
ADDRESS_FILE = "address"
# For each of a scrape's few round trips; a scraper gives up after some 10 s.
REDIS_TIMEOUT_S = 2.0
# A scraper that opens a connection and says nothing holds a thread no longer.
CLIENT_TIMEOUT_S = 10
# Jobs of lanes beyond these are not seen in a scrape.
MAX_LANES_READ = 2_000
MAX_LANES_SHOWN = 100
MAX_FAULTS_SHOWN = 200

_log = structlog.get_logger("assistq.metrics")


def serve() -> None:
    """Serve on `ASSISTQ_METRICS_PORT` (0: a free one) until SIGTERM.

    The address is written to `<PROMETHEUS_MULTIPROC_DIR>/address` as `host:port`. Where it
    cannot serve, it says so in one line and stays: workers run without metrics too.
    """
    settings = Settings.from_env()
    logs.configure(settings)
    # Not configuration: the launcher hands the directory to prometheus_client this way.
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
    try:
        server = _Server((HOST, settings.metrics_port), registry_for(directory, settings=settings))
    except OSError as exc:
        _log.error(
            f"metrics are not served: {HOST}:{settings.metrics_port} cannot be used ({exc.strerror});"
            " set ASSISTQ_METRICS_PORT to a free port, or to 0 for any"
        )
        _stay()
        return
    except InputError as exc:
        _log.error(f"metrics are not served: {exc}")
        _stay()
        return
    address = Path(directory) / ADDRESS_FILE
    try:
        _write_whole(address, f"{HOST}:{server.server_port}\n")
        _log.info("metrics_served", address=f"http://{HOST}:{server.server_port}/metrics")
        server.serve_forever()
    finally:  # Dramatiq's handler of SIGTERM raises SystemExit
        server.server_close()
        address.unlink(missing_ok=True)


def registry_for(directory: str, *, settings: Settings) -> CollectorRegistry:
    """Return what `/metrics` shows: the processes' files in the directory, and Redis; InputError without one."""
    if not Path(directory or os.devnull).is_dir():
        raise InputError(
            f"PROMETHEUS_MULTIPROC_DIR is {directory!r}, which is no directory",
            mend="start the workers with `python -m worker`, which makes one",
        )
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=directory)  # type: ignore[no-untyped-call]
    client = redis.Redis.from_url(
        settings.effective_redis_url,
        socket_timeout=REDIS_TIMEOUT_S,
        socket_connect_timeout=REDIS_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
        encoding_errors="replace",
    )
    registry.register(QueueCollector(client))
    return registry


class QueueCollector(Collector):
    """Reads the queue's depth, age and faults from Redis when it is scraped.

    `client` decodes its answers. With Redis away, `assistq_redis_up` is 0 and the rest missing.
    """

    def __init__(self, client: redis.Redis) -> None:
        """Keep the client; its time-outs bound a scrape."""
        self._client = client
        self._look = client.register_script(read_script("schemas", "lanes.lua"))
        self._use = client.register_script(turns.source("use"))

    def describe(self) -> Iterator[Metric]:
        """Name nothing: a registry must not ask Redis when the collector is registered."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Return the gauges."""
        up = GaugeMetricFamily(f"{names.METRIC_PREFIX}_redis_up", "Whether Redis answered this scrape.")
        try:
            families = self._read()
        except (redis.RedisError, OSError) as exc:
            _log.warning("redis_away", error=str(exc))
            families = []
            up.add_metric([], 0)
        else:
            up.add_metric([], 1)
        yield up
        yield from families

    def _read(self) -> list[Metric]:
        ask = self._client.pipeline(transaction=False)
        ask.time()
        ask.zcard(names.LEASES)
        ask.zcard(names.SNOOZED)
        ask.hgetall(names.FAULTS)
        self._look(keys=[], args=[MAX_LANES_READ], client=ask)
        self._use(keys=[], args=[MAX_LANES_SHOWN], client=ask)
        (seconds, micros), running, snoozed, faults, reports, uses = ask.execute()
        lanes = [LaneStatus.from_report([str(value) for value in report], {}) for report in reports]
        now_ms = seconds * 1000 + micros // 1000
        return [
            _jobs_family(waiting=sum(lane.waiting for lane in lanes), running=running, snoozed=snoozed),
            _gauge("queue_lanes", "Lanes that have waiting jobs or are paused.", len(lanes)),
            *_lane_families(lanes, now_ms=now_ms),
            *_use_families(uses),
            _faults_family(faults),
        ]


def _gauge(name: str, says: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{names.METRIC_PREFIX}_{name}", says, value=value)


def _jobs_family(**states: int) -> Metric:
    family = GaugeMetricFamily(
        f"{names.METRIC_PREFIX}_queue_jobs", "Jobs that have not ended; running includes released.", labels=["state"]
    )
    for state, count in states.items():
        family.add_metric([state], count)
    return family


def _lane_families(lanes: list[LaneStatus], *, now_ms: int) -> list[Metric]:
    """Return the depth, the oldest age and the pause of the MAX_LANES_SHOWN longest lanes."""
    prefix = f"{names.METRIC_PREFIX}_lane"
    depth = GaugeMetricFamily(
        f"{prefix}_waiting_jobs",
        f"Jobs that wait in a lane, for the {MAX_LANES_SHOWN} longest.",
        labels=["lane", "priority"],
    )
    age = GaugeMetricFamily(
        f"{prefix}_oldest_seconds", "Age of the oldest job at the head of one of the lane's lines.", labels=["lane"]
    )
    paused = GaugeMetricFamily(f"{prefix}_paused", "Lanes that somebody paused.", labels=["lane"])
    for lane in heapq.nlargest(MAX_LANES_SHOWN, lanes, key=lambda each: each.waiting):
        depth.add_metric([lane.name, "interactive"], lane.interactive)
        depth.add_metric([lane.name, "batch"], lane.batch)
        if lane.oldest_ms is not None:
            age.add_metric([lane.name], max(0, now_ms - lane.oldest_ms) / 1000)
        if lane.paused:
            paused.add_metric([lane.name], 1)
    return [depth, age, paused]


def _use_families(uses: list[list[str]]) -> list[Metric]:
    """Return what lanes with calls waiting or in flight have used of their limits, as worker/limits/use.lua tells."""
    prefix = f"{names.METRIC_PREFIX}_lane"
    ratio = GaugeMetricFamily(
        f"{prefix}_quota_used_ratio", "Share of a lane's limit that the last minute used.", labels=["lane", "kind"]
    )
    calls = GaugeMetricFamily(
        f"{prefix}_calls", "Calls of a lane that wait for their turn, or are in flight.", labels=["lane", "state"]
    )
    for lane, requests, rpm, tokens, tpm, in_flight, waiting in uses:
        ratio.add_metric([lane, "requests"], int(requests) / int(rpm))
        ratio.add_metric([lane, "tokens"], int(tokens) / int(tpm))
        calls.add_metric([lane, "in_flight"], int(in_flight))
        calls.add_metric([lane, "waiting"], int(waiting))
    return [ratio, calls]


def _faults_family(faults: dict[str, str]) -> Metric:
    family = GaugeMetricFamily(
        f"{names.METRIC_PREFIX}_lane_faulted", "Lanes that stand still, by reason code.", labels=["lane", "code"]
    )
    for lane, fault in sorted(faults.items())[:MAX_FAULTS_SHOWN]:
        try:
            code = LaneFault.model_validate_json(fault).code.value
        except ValidationError:  # written by another version; that the lane stands still is known
            code = "unreadable"
        family.add_metric([lane, code], 1)
    return family


class _Server(ThreadingHTTPServer):
    """The HTTP server; it ends when the process that forked it is gone, as after kill -9."""

    def __init__(self, address: tuple[str, int], registry: CollectorRegistry) -> None:
        super().__init__(address, _Handler)
        self.registry = registry
        self._parent = multiprocessing.parent_process()

    def service_actions(self) -> None:
        """Look after the parent; called twice a second by serve_forever."""
        if self._parent is not None and not self._parent.is_alive():
            raise SystemExit(0)

    def handle_error(self, *_: Any) -> None:
        """Say in one line what a request met, such as a client that went away."""
        _log.warning("metrics_request_failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = CLIENT_TIMEOUT_S

    def do_GET(self) -> None:
        """Answer `/metrics` and `/health`."""
        match self.path.partition("?")[0]:
            case "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(HTTPStatus.OK, encode(self.server.registry), content_type)
            case "/health":
                self._answer(HTTPStatus.OK, b"ok\n")
            case _:
                self._answer(HTTPStatus.NOT_FOUND, b"there are /metrics and /health\n")

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log no requests: a scraper comes every few seconds."""

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _write_whole(path: Path, text: str) -> None:
    """Write the file so that a reader never sees half of it."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def _stay() -> None:
    """Wait until SIGTERM, or until the parent is gone."""
    parent = multiprocessing.parent_process()
    if parent is None:
        threading.Event().wait()
    else:
        with suppress(OSError):
            parent.join()
