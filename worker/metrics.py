"""Turns events into Prometheus metrics, summed over all worker processes.

The library writes each process's values to files under PROMETHEUS_MULTIPROC_DIR, which
must be set before Python starts; `worker.metrics_server` adds them up and serves them.
"""

from __future__ import annotations

import threading
from typing import assert_never

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from schemas.money import NANOS
from schemas.names import METRIC_PREFIX
from worker.events import (
    BatchEnded,
    Event,
    JobCrashed,
    JobEnded,
    JobSnoozed,
    JobsRecovered,
    JobStarted,
    LimiterWaited,
    OldRowsPruned,
    ProviderCalled,
    ServiceFault,
    StaleWorkRefused,
    ToolCalled,
    ToolCrashed,
    WebhookAttempted,
)

# Names that users choose end in labels: beyond so many of one kind in a process, the rest
# are counted together. Totals stay right.
MAX_LABEL_VALUES = 200
REST = "_other"

_CALL_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)
_JOB_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_WAIT_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The subscriber that counts."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Register the metrics; once for each registry."""

        def counter(name: str, says: str, *labels: str) -> Counter:
            return Counter(f"{METRIC_PREFIX}_{name}", says, labels, registry=registry)

        def histogram(name: str, says: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"{METRIC_PREFIX}_{name}", says, labels, buckets=buckets, registry=registry)

        self._workspaces = _Bounded()
        self._providers = _Bounded()
        self._models = _Bounded()
        self._jobs = counter("jobs", "Jobs that ended, by final status.", "workspace", "status")
        self._snoozed = counter("jobs_snoozed", "Times that a job went back to wait, by reason code.", "code")
        self._job_duration = histogram("job_duration_seconds", "Duration of ended jobs.", _JOB_BUCKETS_S, "status")
        self._calls = counter(
            "provider_calls", "Provider calls; outcome is ok or a reason code.", "provider", "model", "outcome"
        )
        self._call_duration = histogram(
            "provider_call_duration_seconds", "Duration of provider calls.", _CALL_BUCKETS_S, "provider", "model"
        )
        self._tokens = counter("tokens", "Tokens that providers counted.", "provider", "model", "kind")
        self._cost = counter("cost", "Cost of calls, in the currency of the configured prices.", "provider", "model")
        self._limiter_waits = counter("limiter_waits", "Waits for a lane's limit.", "provider", "model")
        self._limiter_wait = histogram("limiter_wait_seconds", "Duration of waits for a lane's limit.", _WAIT_BUCKETS_S)
        self._webhooks = counter("webhook_attempts", "POSTs of webhooks, by outcome.", "event_type", "outcome")
        self._crashes = counter("job_crashes", "Errors in the flow that it does not know.")
        self._tool_calls = counter("tool_calls", "Tool calls of models, by outcome: ok or failed.", "outcome")
        self._recovered = counter("jobs_recovered", "Jobs taken back after their lease had ended.")
        self._faults = counter("service_faults", "Failures of a part that a worker needs.", "part")
        self._pruned = counter("rows_pruned", "Rows of SQL that were deleted for their age, by kind.", "kind")
        self._stale = counter("stale_work_refused", "Writes refused because the job was no longer the worker's.")
        self._replayed = counter("journal_steps_replayed", "Finished steps taken from a journal, not bought again.")

    def on_event(self, event: Event) -> None:  # noqa: C901, PLR0912 - one case for each kind of event
        """Count the event."""
        match event:
            case JobStarted():
                self._replayed.inc(event.replayed_steps)
            case LimiterWaited():
                self._limiter_waits.labels(*self._lane(event)).inc()
                self._limiter_wait.observe(event.wait_s)
            case ProviderCalled():
                self._count_call(event)
            case ToolCalled():
                self._tool_calls.labels("failed" if event.failed else "ok").inc()
            case ToolCrashed():
                return  # counted as a failed call
            case JobSnoozed():
                self._snoozed.labels(event.code).inc()
            case JobEnded():
                self._jobs.labels(self._workspaces.label(event.workspace), event.status).inc()
                self._job_duration.labels(event.status).observe(event.duration_s)
            case JobCrashed():
                self._crashes.inc()
            case BatchEnded():
                pass  # its jobs were counted one by one
            case JobsRecovered():
                self._recovered.inc(event.count)
            case StaleWorkRefused():
                self._stale.inc()
            case WebhookAttempted():
                self._webhooks.labels(event.event_type, event.outcome).inc()
            case OldRowsPruned():
                for kind, count in event.rows.items():
                    self._pruned.labels(kind).inc(count)
            case ServiceFault():
                self._faults.labels(event.part).inc()
            case _:
                assert_never(event)

    def _count_call(self, event: ProviderCalled) -> None:
        lane = self._lane(event)
        self._calls.labels(*lane, event.outcome).inc()
        self._call_duration.labels(*lane).observe(event.duration_s)
        self._tokens.labels(*lane, "prompt").inc(event.prompt_tokens)
        self._tokens.labels(*lane, "completion").inc(event.completion_tokens)
        self._cost.labels(*lane).inc(event.cost_nano / NANOS)

    def _lane(self, event: LimiterWaited | ProviderCalled) -> tuple[str, str]:
        return self._providers.label(event.lane.provider), self._models.label(event.lane.model)


class _Bounded:
    """Lets the first MAX_LABEL_VALUES values through; the rest become one."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def label(self, value: str) -> str:
        """Return the label that stands for the value."""
        with self._lock:
            if value not in self._seen:
                if len(self._seen) >= MAX_LABEL_VALUES:
                    return REST
                self._seen.add(value)
        return value
