"""Tables that an older release made are brought to the layout of this one, with the rows that they hold."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, inspect
from sqlmodel import Session, SQLModel, select

from schemas import InputError
from schemas.database import engine_for, ensure_tables
from schemas.table_layout import add_what_is_missing
from schemas.tables import Batch, Job
from tests.given import NOW

# What a release before costs, retries, expiry and the age of deliveries did not have; and indexes that it lacked.
NEW_COLUMNS = {
    "jobs": {"cost_nano", "request"},
    "batches": {"cost_nano", "spend_cap_nano", "retry_of", "expires_at"},
    "deliveries": {"replayed_at"},
    "webhook_endpoints": {"failing_since"},
    "threads": {"assistants"},
    "files": {"assistants"},
}
# What it had as INTEGER.
WIDENED = {
    "jobs": {"requests", "prompt_tokens", "completion_tokens"},
    "batches": {"total", "requests", "prompt_tokens", "completion_tokens"},
}
NEW_INDEXES = {"jobs_of_batch", "ix_batches_retry_of", "deliveries_by_age"}
OLD_JOB: dict[str, Any] = {
    "id": "old",
    "workspace": "acme",
    "assistant": "acme/reviews/sentiment",
    "status": "succeeded",
    "output": {"label": "good"},
    "requests": 1,
    "prompt_tokens": 10,
    "completion_tokens": 2,
    "attempts": 1,
    "epoch": 1,
    "variables": {},
    "metadata": {},
    "enqueued_at": NOW,
    "finished_at": NOW,
}


def older_layout() -> MetaData:
    """Return the tables as that release had them."""
    older = MetaData()
    for table in SQLModel.metadata.sorted_tables:
        new = NEW_COLUMNS.get(table.name, set())
        narrow = WIDENED.get(table.name, set())
        columns = [
            Column(
                each.name,
                Integer() if each.name in narrow else each.type,
                primary_key=each.primary_key,
                nullable=each.nullable,
            )
            for each in table.columns
            if each.name not in new
        ]
        copy = Table(table.name, older, *columns)
        for index in table.to_metadata(MetaData()).indexes:
            if index.name not in NEW_INDEXES:
                type(index)(index.name, *(copy.columns[each.name] for each in index.columns))
    return older


def with_older_tables(url: str) -> Engine:
    engine = engine_for(url)
    older = older_layout()
    older.create_all(engine)
    with engine.begin() as connection:
        connection.execute(older.tables["jobs"].insert(), OLD_JOB)
    return engine


def test_rows_of_an_older_layout_are_read_and_new_ones_written(database_url: str) -> None:
    engine = with_older_tables(database_url)
    ensure_tables(engine)
    ensure_tables(engine)
    with Session(engine) as session:
        old = session.exec(select(Job)).one()
        assert (old.output, old.cost_nano, old.request) == ({"label": "good"}, 0, None)
        fields = {**OLD_JOB, "id": "new", "job_metadata": {}, "cost_nano": 2**40, "request": {"assistant": "a/b/c"}}
        fields.pop("metadata")
        session.add(Job(**fields))
        fields = {"id": "b", "workspace": "acme", "state": "completed", "total": 1, "counts": {}, "requests": 1}
        session.add(
            Batch(**fields, prompt_tokens=1, completion_tokens=1, expires_at=NOW, created_at=NOW, finished_at=NOW)
        )
        session.commit()
        job, batch = session.get(Job, "new"), session.get(Batch, "b")
        assert job is not None
        assert batch is not None
        assert (job.cost_nano, job.request) == (2**40, {"assistant": "a/b/c"})
        assert (batch.expires_at, batch.spend_cap_nano) == (NOW, None)
    indexes = {index["name"] for table in NEW_COLUMNS for index in inspect(engine).get_indexes(table)}
    assert indexes >= NEW_INDEXES
    engine.dispose()


def test_a_process_of_the_older_release_goes_on_writing(database_url: str) -> None:
    engine = with_older_tables(database_url)
    ensure_tables(engine)
    with engine.begin() as connection:
        connection.execute(older_layout().tables["jobs"].insert(), {**OLD_JOB, "id": "later"})
    with Session(engine) as session:
        later = session.get(Job, "later")
        assert later is not None
        assert later.cost_nano == 0
    engine.dispose()


def test_counts_of_an_older_layout_hold_the_sums_of_this_one(database_url: str) -> None:
    engine = with_older_tables(database_url)
    ensure_tables(engine)
    many = {"requests": 2**31, "prompt_tokens": 2**32, "completion_tokens": 2**33}
    with engine.begin() as connection:
        jobs, batches = (SQLModel.metadata.tables[name] for name in WIDENED)
        connection.execute(jobs.update().values(many))
        times = {"created_at": NOW, "finished_at": NOW}
        connection.execute(
            batches.insert(),
            {"id": "b", "workspace": "acme", "state": "s", "total": 2**31, "counts": {}} | many | times,
        )
    with Session(engine) as session:
        job, batch = session.exec(select(Job)).one(), session.exec(select(Batch)).one()
        assert {name: getattr(job, name) for name in many} == many
        assert {name: getattr(batch, name) for name in many} == many
        assert job.output == {"label": "good"}
    engine.dispose()


def test_several_that_start_at_once_add_each_column_once(database_url: str) -> None:
    with_older_tables(database_url).dispose()
    engines = [engine_for(database_url) for _ in range(6)]
    with ThreadPoolExecutor(len(engines)) as starting:
        list(starting.map(ensure_tables, engines))
    with Session(engines[0]) as session:
        assert session.exec(select(Job)).one().cost_nano == 0
    for engine in engines:
        engine.dispose()


def test_text_defaults_are_written_as_they_are(database_url: str) -> None:
    metadata = MetaData()
    Table("things", metadata, Column("id", Integer, primary_key=True))
    engine = engine_for(database_url)
    metadata.create_all(engine)
    newer = MetaData()
    default = "it's :here; 100 %"
    note = Column("note", String, nullable=False, default=default)
    things = Table("things", newer, Column("id", Integer, primary_key=True), note)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO things VALUES (1)")
        add_what_is_missing(connection, newer)
        assert connection.execute(things.select()).one().note == default
    engine.dispose()


@pytest.mark.parametrize(
    ("column", "why"),
    [
        (Column("must", String, nullable=False), "it must not be empty and has no default"),
        (Column("must", String, primary_key=True), "it is part of the primary key"),
        (Column("must", String, unique=True), "it belongs to a constraint"),
    ],
    ids=["not null", "primary key", "unique"],
)
def test_a_column_that_cannot_be_added_is_one_error_and_nothing_is_changed(
    database_url: str, column: Column[str], why: str
) -> None:
    metadata = MetaData()
    Table("things", metadata, Column("id", Integer, primary_key=True))
    engine = engine_for(database_url)
    metadata.create_all(engine)
    newer = MetaData()
    can = Column("can", String)
    Table("things", newer, Column("id", Integer, primary_key=True), can, column._copy())
    said = rf"table 'things' .* column 'must' is missing, and cannot be added because {why}"
    with pytest.raises(InputError, match=said), engine.begin() as connection:
        add_what_is_missing(connection, newer)
    assert [each["name"] for each in inspect(engine).get_columns("things")] == ["id"]
    engine.dispose()
