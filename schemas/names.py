"""The only shared strings: Redis keys, queues, actors, channels, events, metric prefix.

Both `producer` and `worker` build their Redis keys here, so that this page is the map of
what Redis holds. Times in Redis are integers, milliseconds since the epoch, on the
server's clock.

| key | type | holds |
| --- | --- | --- |
| `aq:job:<job>` | hash | one job that has not ended: `record` (JSON of JobRecord), `state` (waiting, released, running, snoozed, blocked), `epoch`, `owner` (the claim's token), `attempts`, `line`, `thread`, `batch`, `enqueued_ms` |
| `aq:journal:<job>` | list | the job's finished steps, JSON, oldest first |
| `aq:result:<job>` | string | JSON of JobResult; kept RESULT_TTL_S after the end |
| `aq:line:<line>` | list | waiting jobs of one assistant, head runs first |
| `aq:lines` | list | the ring of lines that have waiting jobs; each line stands in it once |
| `aq:lines:in` | set | the members of that ring |
| `aq:hold:<line>` | string | while it exists nothing of the line is released; its expiry ends the hold |
| `aq:leases` | zset | released and running jobs by the time at which their lease ends |
| `aq:snoozed` | zset | jobs that wait for a time, by that time |
| `aq:swept` | string | when the last sweep was |
| `aq:thread:<workspace>:<thread>` | list | jobs of one thread that have not ended; only the head may run |
| `aq:workers` | hash | worker process -> `<capacity> <expires_ms>` |
| `aq:batch:<batch>` | hash | `total` (once sealed), `enqueued`, `started` (ms), `finished`, one count per final status, `requests`, `prompt_tokens`, `completion_tokens`, `state`, `workspace`, `webhook`, `label`, `created_ms` |
| `aq:rows:<batch>` | bitmap | rows that were enqueued: a row enters a batch once |
| `aq:batches` | zset | batches by creation time |
| `aq:ending` | set | batches whose last job ended and whose end is not yet in SQL |
| `aq:limit:<lane>` | hash | the lane's token bucket, see worker/limits/reserve.lua |
| `aq:seen:<calls that are alike>` | hash | histograms of what calls needed, see worker/limits/exchange_estimates.lua |
| `aq:faults` | hash | lanes that stand still -> JSON of LaneFault |
"""  # noqa: E501 - a table row is one line

from __future__ import annotations

PREFIX = "aq"
METRIC_PREFIX = "assistq"

JOBS_QUEUE = "jobs"
WEBHOOKS_QUEUE = "webhooks"
RUN_JOB_ACTOR = "run_job"
DELIVER_WEBHOOK_ACTOR = "deliver_webhook"
DRAMATIQ_NAMESPACE = "aq:dq"

LINES = f"{PREFIX}:lines"
LINES_IN = f"{PREFIX}:lines:in"
LEASES = f"{PREFIX}:leases"
SNOOZED = f"{PREFIX}:snoozed"
SWEPT = f"{PREFIX}:swept"
WORKERS = f"{PREFIX}:workers"
BATCHES = f"{PREFIX}:batches"
ENDING = f"{PREFIX}:ending"
FAULTS = f"{PREFIX}:faults"

# A producer publishes here after each enqueue, so that an idle worker need not poll fast.
WAKE_CHANNEL = f"{PREFIX}:wake"

# handle.result() finds a finished job for this long; SQL keeps it for ever.
RESULT_TTL_S = 24 * 60 * 60
# The result of a job that is not to be recorded: as long as its caller may need to fetch it.
UNRECORDED_RESULT_TTL_S = 60


def job(job_id: str) -> str:
    """Return the key of a job that has not ended."""
    return f"{PREFIX}:job:{job_id}"


def journal(job_id: str) -> str:
    """Return the key of a job's finished steps."""
    return f"{PREFIX}:journal:{job_id}"


def result(job_id: str) -> str:
    """Return the key of a finished job's result."""
    return f"{PREFIX}:result:{job_id}"


def done_channel(job_id: str) -> str:
    """Return the channel on which a job's end is published."""
    return f"{PREFIX}:done:{job_id}"


def line(line_id: str) -> str:
    """Return the key of the list of waiting jobs of one line."""
    return f"{PREFIX}:line:{line_id}"


def hold(line_id: str) -> str:
    """Return the key whose existence keeps a line from being released."""
    return f"{PREFIX}:hold:{line_id}"


def thread(workspace: str, thread_id: str) -> str:
    """Return the key of the order of jobs of one thread."""
    return f"{PREFIX}:thread:{workspace}:{thread_id}"


def batch(batch_id: str) -> str:
    """Return the key of a batch's counts."""
    return f"{PREFIX}:batch:{batch_id}"


def batch_rows(batch_id: str) -> str:
    """Return the key of the bitmap of a batch's enqueued rows."""
    return f"{PREFIX}:rows:{batch_id}"


def seen(calls: str) -> str:
    """Return the key of what calls that are alike needed."""
    return f"{PREFIX}:seen:{calls}"


def limit(lane: str) -> str:
    """Return the key of a lane's token bucket."""
    return f"{PREFIX}:limit:{lane}"
