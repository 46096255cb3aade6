"""The only shared strings: Redis keys, queues, actors, channels, events, metric prefix.

Both `producer` and `worker` build their Redis keys here, so that this page is the map of
what Redis holds. Times in Redis are integers, milliseconds since the epoch, on the
server's clock.

| key | type | holds |
| --- | --- | --- |
| `aq:job:<job>` | hash | one job that has not ended: `record` (JSON of JobRecord), `state` (waiting, released, running, snoozed, blocked), `epoch`, `priority` (I, B), `route`, `batch`, `thread`, `enqueued_ms`; once they matter `owner` (the claim's token), `attempts`, `called_off` (why it ends without a call), `deaths` (leases that ended while it ran); while it makes a call under a cap `held_nano`, `held_on`, `held_sent` (worker/spend/reservation.lua) |
| `aq:journal:<job>` | list | the job's finished steps, JSON, oldest first |
| `aq:result:<job>` | string | JSON of JobResult; kept RESULT_TTL_S after the end; of a job that is not to be recorded UNRECORDED_RESULT_TTL_S, and with a webhook as long before as that takes (worker/webhooks/unrecorded.py) |
| `aq:parts:<job>` | stream | what is told of a running job whose caller asked for each token, JSON of schemas/stream.py in the field `part`; an entry's id is `<epoch>-<number in that epoch>`; gone PARTS_TTL_S after the last one, of a job that is not to be recorded UNRECORDED_RESULT_TTL_S after its end |
| `aq:line:<line>` | list | waiting jobs of one batch, priority and assistant, head runs first; `<line>` is JobRecord.line |
| `aq:routes` | hash | what decides a job's lane (InvokeJob.route) -> that lane, as workers found it |
| `aq:ring`, `aq:lanes:…`, `aq:lines:…`, `aq:ring:left`, `aq:ring:now`, `aq:turn` | | whose turn it is: workspaces, their lanes, their lines; see schemas/lines.lua |
| `aq:parked` | zset | lanes without room, by the time at which to look again |
| `aq:paused` | set | lanes that people stopped |
| `aq:draining`, `aq:drain:<name>` | set, list | jobs that were called off while they waited: names of their lists, and these |
| `aq:drained` | zset | those of them that a worker is ending, by the time within which it had to begin |
| `aq:off:<route>` | string | when the lane of the route was cancelled; what was enqueued before ends as cancelled when it comes back |
| `aq:places` | hash | workspace -> how many of its jobs have a lease |
| `aq:entering:<lane>` | zset | released jobs that have not asked the limiter yet, by the time at which that is given up |
| `aq:weights` | hash | workspace -> its weight against others, where it is not 1 |
| `aq:leases` | zset | released and running jobs by the time at which their lease ends |
| `aq:snoozed` | zset | jobs that wait for a time, by that time |
| `aq:pruning` | string | the worker process that deleted last what ended long ago; none begins while it is there |
| `aq:swept` | string | when the last sweep was |
| `aq:thread:<workspace>:<thread>` | list | jobs of one thread that have not ended; only the head may run |
| `aq:workers` | hash | worker process -> `<capacity> <expires_ms>` |
| `aq:batch:<batch>` | hash | `total` (once sealed), `enqueued`, `started` (ms), `finished`, one count per final status, `requests`, `prompt_tokens`, `completion_tokens`, `state`, `workspace`, `webhook`, `label`, `created_ms`, `cost_nano`; `expires_ms`, `spend_cap_nano` and `retry_of` if it was given them; `paused_ms`, `cancelled_ms` once people stopped it, `expired_ms` once its time was over; with a cap `spent_nano`, `reserved_nano`, `refused`, `short_ms`, `over_budget_ms` (worker/spend/reservation.lua) |
| `aq:linesof:<batch>` | set | the lines that the batch's jobs have stood in |
| `aq:rows:<batch>` | bitmap | rows that were enqueued: a row enters a batch once |
| `aq:blocked:<batch>` | set | jobs of the batch that are blocked by their threads |
| `aq:batches` | zset | batches by creation time |
| `aq:expiring` | zset | batches that were given an end by time and have not ended, by that time (on its giver's clock) |
| `aq:ending` | set | batches whose last job ended and whose end is not yet in SQL |
| `aq:limit:<lane>` | hash | the lane's token bucket, see worker/limits/reserve.lua |
| `aq:seen:<calls that are alike>` | hash | histograms of what calls needed, see worker/limits/exchange_estimates.lua |
| `aq:cells:<lane>`, `aq:tickets:<lane>`, `aq:held:<lane>` | | the lane's ledger of the last minute, who waits for a turn, who has one; see the same |
| `aq:spend:<workspace>:<period>` | hash | what the workspace spent in a day, month or at all: `spent_nano`, `reserved_nano`, and `cap_nano` if it has a cap |
| `aq:spends` | set | the keys of these |
| `aq:limited` | zset | lanes with calls waiting or in flight, by when they are looked at for dead owners |
| `aq:expiry` | hash | when that was done last, see worker/limits/expire.lua |
| `aq:flush` | string | empty, for a minute; written by who waits for the disk, see producer/confirm.lua |
| `aq:waiters` | zset | jobs that end as cancelled once nobody waits for them, by when a gateway said last that somebody does, see producer/gateway/waiters.py |
| `aq:idempotency:<hash>` | string | a digest of the body that an `Idempotency-Key` first came with, for a day; the hash is of workspace, operation and key |
| `aq:rpm:<API key>` | string | when the key has all its requests a minute again, see producer/gateway/request_limit.lua; gone then |
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

ROUTES = f"{PREFIX}:routes"
RING = f"{PREFIX}:ring"
PARKED = f"{PREFIX}:parked"
PAUSED = f"{PREFIX}:paused"
DRAINING = f"{PREFIX}:draining"
WEIGHTS = f"{PREFIX}:weights"
PLACES = f"{PREFIX}:places"
DRAINED = f"{PREFIX}:drained"
LEASES = f"{PREFIX}:leases"
SNOOZED = f"{PREFIX}:snoozed"
SWEPT = f"{PREFIX}:swept"
PRUNING = f"{PREFIX}:pruning"
WORKERS = f"{PREFIX}:workers"
BATCHES = f"{PREFIX}:batches"
EXPIRING = f"{PREFIX}:expiring"
ENDING = f"{PREFIX}:ending"
FAULTS = f"{PREFIX}:faults"
SPENDS = f"{PREFIX}:spends"
FLUSH = f"{PREFIX}:flush"
WAITERS = f"{PREFIX}:waiters"

# A producer publishes here after each enqueue, so that an idle worker need not poll fast.
WAKE_CHANNEL = f"{PREFIX}:wake"

# Who has made a batch over OpenAI's API, or ended one of any kind, publishes here, so that gateways look for work.
BATCHES_CHANNEL = f"{PREFIX}:batches:news"

# Whoever changes an API key publishes here, so that gateways forget what they knew of keys.
KEYS_CHANNEL = f"{PREFIX}:keys"

# handle.result() finds a finished job for this long; SQL keeps it until it is pruned.
RESULT_TTL_S = 24 * 60 * 60
# What was streamed of a job waits so long for a slow reader.
PARTS_TTL_S = 10 * 60
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


def parts(job_id: str) -> str:
    """Return the key of the stream of what is told of a running job."""
    return f"{PREFIX}:parts:{job_id}"


def done_channel(job_id: str) -> str:
    """Return the channel on which a job's end is published, and that there is more in its stream of parts."""
    return f"{PREFIX}:done:{job_id}"


def idempotency(digest: str) -> str:
    """Return the key of what a caller's `Idempotency-Key` first came with."""
    return f"{PREFIX}:idempotency:{digest}"


def line(line_id: str) -> str:
    """Return the key of the list of waiting jobs of one line."""
    return f"{PREFIX}:line:{line_id}"


def entering(lane: str) -> str:
    """Return the key of a lane's jobs that were released and have not asked the limiter yet."""
    return f"{PREFIX}:entering:{lane}"


def lane_lines(lane: str, priority_mark: str) -> str:
    """Return the key of a lane's lines of one priority, the one served longest ago first."""
    return f"{PREFIX}:lines:{priority_mark}:{lane}"


def workspace_lanes(workspace: str, priority_mark: str) -> str:
    """Return the key of a workspace's open lanes that have lines of one priority."""
    return f"{PREFIX}:lanes:{priority_mark}:{workspace}"


def thread(workspace: str, thread_id: str) -> str:
    """Return the key of the order of jobs of one thread."""
    return f"{PREFIX}:thread:{workspace}:{thread_id}"


def batch(batch_id: str) -> str:
    """Return the key of a batch's counts."""
    return f"{PREFIX}:batch:{batch_id}"


def batch_lines(batch_id: str) -> str:
    """Return the key of the set of lines that a batch's jobs have stood in."""
    return f"{PREFIX}:linesof:{batch_id}"


def blocked(batch_id: str) -> str:
    """Return the key of the set of a batch's jobs that are blocked by their threads."""
    return f"{PREFIX}:blocked:{batch_id}"


def batch_rows(batch_id: str) -> str:
    """Return the key of the bitmap of a batch's enqueued rows."""
    return f"{PREFIX}:rows:{batch_id}"


def seen(calls: str) -> str:
    """Return the key of what calls that are alike needed."""
    return f"{PREFIX}:seen:{calls}"


def spend(workspace: str, period: str) -> str:
    """Return the key of what a workspace spent in a period, such as 2026-11."""
    return f"{PREFIX}:spend:{workspace}:{period}"


def limit(lane: str) -> str:
    """Return the key of a lane's token bucket."""
    return f"{PREFIX}:limit:{lane}"


def request_limit(key_id: str) -> str:
    """Return the key of what an API key has left of its requests a minute."""
    return f"{PREFIX}:rpm:{key_id}"
