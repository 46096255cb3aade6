"""Under which id `assistq run` runs a file: a real Valkey, SQLite and PostgreSQL, no workers."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Engine
from sqlmodel import Session

from producer import Producer
from producer.records import Records
from producer.run_ids import run_id
from schemas import names
from schemas.tables import Batch
from tests.given import a_job


def ended(engine: Engine, producer: Producer, *batch_ids: str, pruned: bool = False) -> None:
    """Have these batches ended, for SQL and for Redis, or for Redis alone."""
    for batch_id in batch_ids:
        # As Redis has it once the worker has ended it.
        producer.connection.hset(names.batch(batch_id), mapping={"workspace": "acme", "total": 1, "state": "completed"})
        if pruned:
            continue
        now = datetime.now(UTC)
        with Session(engine) as session:
            session.add(
                Batch(
                    id=batch_id,
                    workspace="acme",
                    state="completed",
                    total=1,
                    counts={"succeeded": 1},
                    requests=1,
                    prompt_tokens=1,
                    completion_tokens=1,
                    created_at=now,
                    finished_at=now,
                )
            )
            session.commit()


def named(engine: Engine, producer: Producer, *, again: bool = True) -> str:
    records = Records(engine)
    known = [each.batch_id for each in records.runs_of("F")]
    return run_id(producer, records, "F", ended=known, again=again)


def test_a_run_comes_after_the_highest_that_is_known_though_earlier_ones_were_pruned(
    engine: Engine, producer: Producer
) -> None:
    assert named(engine, producer) == "F"
    ended(engine, producer, "F_2")
    assert named(engine, producer) == "F_3"
    # No run of this file, though its id begins in the same way.
    ended(engine, producer, "F_10", "F_old", "F_011", "FF_20")
    assert named(engine, producer) == "F_11"


def test_one_that_ended_and_was_pruned_is_not_taken_for_the_new_run(engine: Engine, producer: Producer) -> None:
    ended(engine, producer, "F", "F_2", pruned=True)
    assert named(engine, producer) == "F_3"
    # Who does not ask for a new run pays for none: the results may be in another database.
    assert named(engine, producer, again=False) == "F"


def test_one_that_was_interrupted_is_gone_on_with_whatever_was_pruned(engine: Engine, producer: Producer) -> None:
    ended(engine, producer, "F")
    producer.enqueue_many([a_job()], batch_id="F_3")
    producer.enqueue_many([a_job()], batch_id="F_3_retry1")
    producer.enqueue_many([a_job()], batch_id="other")
    assert named(engine, producer) == "F_3"
    assert named(engine, producer, again=False) == "F_3"


def test_one_that_ended_since_we_looked_is_taken_as_it_is(engine: Engine, producer: Producer) -> None:
    ended(engine, producer, "F_2")
    assert run_id(producer, Records(engine), "F", ended=["F"], again=True) == "F_2"
