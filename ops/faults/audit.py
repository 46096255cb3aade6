"""The audits: what a run must have left, checked over the recorded facts. Pure.

Each takes all facts and returns a Verdict; AUDITS is all of them, in the order of the table.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ops.faults.facts import Exchange, Facts, Intended, IntendedJob, JobRow, ThreadLine
from ops.faults.lives import JOURNALED_WITHIN_S, Lives
from ops.faults.script import Kind, digest_of

SUCCEEDED, FAILED, CANCELLED = "succeeded", "failed", "cancelled"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an audit found: how many things it looked at, and each breach in words, which name the offender."""

    audit: str
    checked: int
    breaches: tuple[str, ...]
    note: str = ""

    @property
    def ok(self) -> bool:
        """Return whether there was no breach."""
        return not self.breaches


Audit = Callable[[Facts, Lives], Verdict]


def one_final_state(facts: Facts, lives: Lives) -> Verdict:  # noqa: ARG001 - every audit is called alike
    """Every acknowledged job has exactly one final state, the scripted one, and says the same in SQL and Redis."""
    rows = _rows(facts)
    breaches: list[str] = []
    checked = 0
    intended = {job.id: (source, job) for source in facts.intended for job in source.jobs}
    for source, job in intended.values():
        checked += source.acknowledged
        row = rows.get(job.id)
        if row is None:
            if source.acknowledged:
                breaches.append(f"job {job.id} was acknowledged and has no row in SQL")
            continue
        if (kept := facts.results.get(job.id)) != row.status:
            breaches.append(f"job {job.id} is {row.status} in SQL and {kept} in Redis")
        breaches += _unscripted(source, job, row)
    breaches += [f"job {job_id} has a row, and nobody enqueued it" for job_id in rows.keys() - intended.keys()]
    return Verdict("every acknowledged job in one final state", checked, tuple(breaches))


def bought_once(facts: Facts, lives: Lives) -> Verdict:
    """No step is bought again, but for calls that were in flight at a disturbance of theirs."""
    sold = [call for call in facts.calls if call.fate != "refused"]
    return _once("replies that were received: bought once", sold, lives, done="bought")


def effects_once(facts: Facts, lives: Lives) -> Verdict:
    """No tool call is run again, but for those that were in flight at a disturbance of theirs."""
    return _once("tool calls that were answered: run once", facts.effects, lives, done="run")


def whole_turns(facts: Facts, lives: Lives) -> Verdict:  # noqa: ARG001
    """Each thread has the turns of its succeeded jobs, whole, in the order of enqueueing, at positions without gaps."""
    rows = _rows(facts)
    turns = _turns(facts)
    breaches: list[str] = []
    for thread, lines in turns.items():
        if [line.position for line in lines] != list(range(len(lines))):
            breaches.append(f"thread {thread} has positions {[line.position for line in lines]}")
        order = list(dict.fromkeys(line.job_id for line in lines))
        expected = [
            job.id
            for source in facts.intended
            for job in source.jobs
            if (row := rows.get(job.id)) is not None
            and row.status == SUCCEEDED
            and (row.workspace, row.thread_id) == thread
        ]
        if order != expected:
            breaches.append(f"thread {thread} has the turns of {order}, its jobs succeeded as {expected}")
    jobs = {job.id: job for source in facts.intended for job in source.jobs}
    by_job: dict[str, list[ThreadLine]] = defaultdict(list)
    for lines in turns.values():
        for line in lines:
            by_job[line.job_id].append(line)
    for row in rows.values():
        if row.status == SUCCEEDED and (job := jobs.get(row.id)) is not None:
            breaches += _broken_turn(job, by_job.get(row.id, []))
    return Verdict("threads in order, turns whole", len(turns), tuple(breaches))


def history_seen(facts: Facts, lives: Lives) -> Verdict:  # noqa: ARG001
    """Each sold call of a thread's job saw exactly the turns that precede the job's own."""
    before: dict[str, str] = {}
    for lines in _turns(facts).values():
        for position, line in enumerate(lines):
            if line.job_id not in before:
                before[line.job_id] = digest_of(earlier.said for earlier in lines[:position])
    checked = [call for call in facts.calls if call.fate != "refused" and call.job_id in before]
    breaches = [
        f"call {call.key} saw a history that is not what precedes its job in the thread"
        for call in checked
        if call.history != before[call.job_id]
    ]
    return Verdict("the provider saw the history that precedes", len(checked), tuple(breaches))


def one_event_an_end(facts: Facts, lives: Lives) -> Verdict:  # noqa: ARG001
    """Each end that names a webhook was told, verified, by one id and body; nothing was told of what did not end."""
    wanted = dict(_wanted_events(facts))
    received: dict[str, list[int]] = defaultdict(list)
    for number, receipt in enumerate(facts.receipts):
        received[receipt.about].append(number)
    stored = Counter(delivery.about for delivery in facts.deliveries)
    breaches: list[str] = []
    for about, event_type in wanted.items():
        receipts = [facts.receipts[number] for number in received.get(about, ())]
        if not any(receipt.answered for receipt in receipts):
            breaches.append(f"{about}: its end was never told")
        if len({(receipt.event_id, receipt.body) for receipt in receipts}) > 1:
            ids = sorted({receipt.event_id for receipt in receipts})
            breaches.append(f"{about}: told under ids {ids}, in {len({r.body for r in receipts})} bodies")
        if wrong := {receipt.event_type for receipt in receipts} - {event_type}:
            breaches.append(f"{about}: told as {sorted(wrong)}, it is {event_type}")
        if stored[about] != 1:
            breaches.append(f"{about}: has {stored[about]} rows of deliveries")
    breaches += [
        f"{about}: told, and it has not ended or named no webhook" for about in received.keys() - wanted.keys()
    ]
    breaches += [f"{r.about}: the signature of {r.event_id} is wrong" for r in facts.receipts if not r.verified]
    breaches += [f"{d.about}: delivery {d.id} is {d.state}" for d in facts.deliveries if d.state != "delivered"]
    note = f"{len(facts.receipts)} received of {len(wanted)} events"
    return Verdict("one event id an end", len(wanted), tuple(breaches), note)


def counts_exact(facts: Facts, lives: Lives) -> Verdict:  # noqa: ARG001
    """A batch's counts are its rows', in SQL and in Redis; a succeeded job's tokens are those of its steps."""
    members: dict[str, list[JobRow]] = defaultdict(list)
    for row in facts.jobs:
        if row.batch_id is not None:
            members[row.batch_id].append(row)
    ended = {batch.id: batch for batch in facts.batches}
    breaches: list[str] = []
    sealed = [source for source in facts.intended if source.is_batch and source.acknowledged]
    for source in sealed:
        batch = ended.get(source.id)
        if batch is None:
            breaches.append(f"batch {source.id} was sealed and has not ended in SQL")
            continue
        rows = members[source.id]
        told = (batch.total, dict(batch.counts), batch.requests, batch.prompt_tokens, batch.completion_tokens)
        if told != (summed := _summed(rows)):
            breaches.append(f"batch {source.id} says {told}, its rows {summed}")
        if len(rows) != len(source.jobs):
            breaches.append(f"batch {source.id} has {len(rows)} rows of {len(source.jobs)} jobs")
        states = {CANCELLED, "completed"} if source.cancelled else {"completed"}
        if batch.state not in states:
            breaches.append(f"batch {source.id} is {batch.state}")
        breaches += _differing_hash(source.id, batch.state, summed, facts.batch_hashes.get(source.id))
    breaches += list(_wrong_tokens(facts))
    return Verdict("counts and tokens exact", len(sealed) + len(facts.jobs), tuple(breaches))


def nothing_left(facts: Facts, lives: Lives) -> Verdict:  # noqa: ARG001
    """Nothing of a job is left in Redis: no reservation, ticket, lease, journal or place; and no process."""
    breaches = [f"{key} is left: {value}" for key, value in sorted(facts.left_in_redis.items())]
    breaches += [f"a process is left: {orphan}" for orphan in facts.orphans]
    return Verdict("no reservation, lease, journal, place, process left", 1, tuple(breaches))


def no_crash(facts: Facts, lives: Lives) -> Verdict:  # noqa: ARG001
    """No worker tripped over a fault of its own, and all came to its end in time."""
    return Verdict("no fault of our own, all ended in time", 1, (*facts.crashes, *facts.unsettled))


AUDITS: tuple[Audit, ...] = (
    one_final_state,
    bought_once,
    effects_once,
    whole_turns,
    history_seen,
    one_event_an_end,
    counts_exact,
    nothing_left,
    no_crash,
)


def _rows(facts: Facts) -> Mapping[str, JobRow]:
    return {row.id: row for row in facts.jobs}


def _unscripted(source: Intended, job: IntendedJob, row: JobRow) -> Iterator[str]:
    if row.status == CANCELLED and source.cancelled:
        return
    if job.task.kind is Kind.REFUSED:
        if (row.status, row.error_code) != (FAILED, "request_refused"):
            yield f"job {job.id} is {row.status} ({row.error_code}), the provider refused its request"
    elif row.status != SUCCEEDED:
        yield f"job {job.id} is {row.status} ({row.error_code}), its script was to succeed"
    elif row.output != job.task.output():
        yield f"job {job.id} has the output {row.output!r}, not {job.task.output()!r}"


def _once(audit: str, exchanges: Iterable[Exchange], lives: Lives, *, done: str) -> Verdict:
    """Check that only what was in flight at a disturbance was done again, or what was answered just before it."""
    by_key: dict[str, list[Exchange]] = defaultdict(list)
    for exchange in exchanges:
        by_key[exchange.key].append(exchange)
    breaches: list[str] = []
    in_flight, just_answered = _Repeated(), _Repeated()
    revived = 0
    for key, done_so in by_key.items():
        done_so.sort(key=lambda exchange: exchange.arrived_s)
        for number, earlier in enumerate(done_so):
            later = done_so[number + 1] if number + 1 < len(done_so) else None
            if lives.disturbance_of(earlier, in_flight=True) is not None:
                in_flight.count(later)
            elif lives.disturbance_of(earlier) is not None:
                just_answered.count(later)
            elif later is not None and lives.by_a_revived_worker(later):
                revived += 1
            elif later is not None:
                breaches.append(f"{key} was {done} again, undisturbed: {_told(earlier)}; then {_told(later)}")
    note = (
        f"in flight at a kill, stop or cut: {in_flight.all}, of them {done} again: {in_flight.again}; "
        f"answered less than {JOURNALED_WITHIN_S:g} s before one: {just_answered.all}, again: {just_answered.again}; "
        f"again by a worker that was stopped: {revived}"
    )
    return Verdict(audit, len(by_key), tuple(breaches), note)


@dataclass(slots=True)
class _Repeated:
    """How many exchanges of a kind there were, and how many of them were followed by another one."""

    all: int = 0
    again: int = 0

    def count(self, later: Exchange | None) -> None:
        self.all += 1
        self.again += later is not None


def _told(exchange: Exchange) -> str:
    ended = "never" if exchange.ended_s is None else f"{exchange.ended_s:.3f}"
    return f"by process {exchange.pid}, arrived {exchange.arrived_s:.3f}, {exchange.fate} {ended}"


def _turns(facts: Facts) -> Mapping[tuple[str, str], list[ThreadLine]]:
    turns: dict[tuple[str, str], list[ThreadLine]] = defaultdict(list)
    for line in sorted(facts.thread_lines, key=lambda line: (line.workspace, line.thread_id, line.position)):
        turns[line.workspace, line.thread_id].append(line)
    return turns


def _broken_turn(job: IntendedJob, lines: list[ThreadLine]) -> Iterator[str]:
    """Check one turn: the user's task, whole rounds of tool calls, and the answer; once."""
    said = [line.said for line in lines]
    if [line.position for line in lines] != list(
        range(lines[0].position, lines[0].position + len(lines)) if lines else []
    ):
        yield f"the turn of job {job.id} is torn apart"
    roles = [role for role, *_ in said]
    rounds = job.task.rounds if job.task.kind is Kind.TOOLS else 0
    expected = ["user", *(["assistant", *["tool"] * job.task.calls] * rounds), "assistant"]
    if roles != expected:
        yield f"the turn of job {job.id} is {roles}, not {expected}"
        return
    if said[0][1] != job.task.text():
        yield f"the turn of job {job.id} does not begin with what it was told"
    asked = [call for _, _, calls, _ in said for call in calls]
    answered = [call for *_, call in said if call is not None]
    if sorted(asked) != sorted(answered) or len(set(answered)) != len(answered):
        yield f"the turn of job {job.id} asks for {asked} and answers {answered}"


def _wanted_events(facts: Facts) -> Iterator[tuple[str, str]]:
    rows = _rows(facts)
    ended = {batch.id: batch for batch in facts.batches}
    for source in facts.intended:
        if source.is_batch and source.webhook and source.id in ended:
            yield f"batch/{source.id}", f"batch.{ended[source.id].state}"
        for job in source.jobs:
            if job.webhook and job.id in rows:
                yield f"job/{job.id}", f"job.{rows[job.id].status}"


_Summed = tuple[int, dict[str, int], int, int, int]


def _summed(rows: list[JobRow]) -> _Summed:
    return (
        len(rows),
        dict(Counter(row.status for row in rows)),
        sum(row.requests for row in rows),
        sum(row.prompt_tokens for row in rows),
        sum(row.completion_tokens for row in rows),
    )


def _differing_hash(batch_id: str, state: str, summed: _Summed, found: Mapping[str, str] | None) -> Iterator[str]:
    if found is None:
        yield f"batch {batch_id} has no hash in Redis"
        return
    total, counts, requests, prompt_tokens, completion_tokens = summed
    wanted = {"total": total, "enqueued": total, "finished": total, "requests": requests}
    wanted |= {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, **counts}
    wrong = {name: found.get(name, "0") for name, value in wanted.items() if found.get(name, "0") != str(value)}
    if wrong or found.get("state") != state:
        yield f"batch {batch_id}: its hash says {wrong} and {found.get('state')}; SQL {summed} and {state}"


def _wrong_tokens(facts: Facts) -> Iterator[str]:
    """Compare a succeeded job's requests and tokens with its steps'; a sale again costs what the first one did."""
    sold: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    for call in facts.calls:
        if call.fate != "refused":
            sold[call.job_id][call.key] = (call.prompt_tokens, call.completion_tokens)
    for row in facts.jobs:
        if row.status != SUCCEEDED:
            continue
        steps = sold[row.id].values()
        wanted = (len(steps), sum(prompt for prompt, _ in steps), sum(completion for _, completion in steps))
        if (told := (row.requests, row.prompt_tokens, row.completion_tokens)) != wanted:
            yield f"job {row.id} says {told} requests, prompt and completion tokens; the provider sold {wanted}"
