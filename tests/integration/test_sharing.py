"""What keys with shared assistants see of the tables, on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine
from sqlmodel import Session, select

from producer.gateway.access import Caller
from producer.gateway.dialects.openai.batching.store import NewBatch, OpenAIBatches
from producer.gateway.files import Files, NewFile
from producer.gateway.problem import Problem
from producer.gateway.sharing import thread_seen
from producer.gateway.threads import Threads
from schemas.tables import Job, Thread

A, B, C = (f"demo/p/{name}" for name in "abc")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
# Whose key made it -> who sees it.
SEEN: dict[frozenset[str] | None, list[set[str] | None]] = {
    frozenset({A, B}): [{A}, {B}, {A, B}, set()],
    frozenset({A}): [{A}, set()],
    frozenset({C}): [set()],
    None: [{A}, {B}, {A, B}, set(), None],
}


def key(assistants: frozenset[str] | None, workspace: str = "demo") -> Caller:
    return Caller(key_id="k", workspace=workspace, scopes=frozenset(), assistants=assistants, rpm=None)


@pytest.mark.parametrize("looks", SEEN)
def test_what_a_key_makes_is_seen_by_keys_with_all_of_its_assistants(
    engine: Engine, looks: frozenset[str] | None
) -> None:
    files, batches, threads = Files(engine), OpenAIBatches(engine), Threads(engine, looks)
    made: dict[str, tuple[str, str]] = {}
    for number, makers in enumerate(SEEN[None]):
        maker = key(None if makers is None else frozenset(makers))
        file_id = f"file-{number}"
        files.write(NewFile(file_id, "demo", "batch", "f", "text/plain", assistants=maker.made_with), [b"x"])
        batch = batches.create(NewBatch("demo", maker.assistants, file_id, "/v1/chat/completions", "24h"))
        begun = Threads(engine, maker.assistants).create("demo", metadata=None, create_log=None)
        made[file_id] = batch.id, begun.id
    seen = {f"file-{SEEN[None].index(each)}" for each in SEEN[looks]}
    for file_id, (batch_id, thread_id) in made.items():
        there = file_id in seen
        assert (files.get("demo", file_id, assistants=looks) is not None) is there
        assert (batches.get(key(looks), batch_id) is not None) is there
        if there:
            assert threads.thread("demo", thread_id).id == thread_id
        else:
            with pytest.raises(Problem):
                threads.thread("demo", thread_id)
            with pytest.raises(Problem):
                threads.page("demo", limit=9, after=thread_id)
            with pytest.raises(Problem):
                files.page("demo", purposes=["batch"], limit=9, after=file_id, assistants=looks)
    page, _ = files.page("demo", purposes=["batch"], limit=9, assistants=looks)
    assert {each.id for each in page} == seen
    assert {each.id for each in batches.page(key(looks), limit=9, after=None)[0]} == {made[each][0] for each in seen}
    assert {each.id for each in threads.page("demo", limit=9, after=None).rows} == {made[each][1] for each in seen}


def test_a_thread_is_seen_by_those_that_all_assistants_of_its_jobs_are_shared_with(engine: Engine) -> None:
    with Session(engine) as session:
        for thread_id, assistants in {"a": [A], "ab": [A, B], "none": []}.items():
            session.add(Thread(workspace="demo", id=thread_id, provider_refs={}, created_at=NOW))
            for number, assistant in enumerate(assistants):
                session.add(
                    Job(
                        id=f"{thread_id}-{number}", workspace="demo", assistant=assistant, thread_id=thread_id,
                        status="succeeded", epoch=1, variables={}, job_metadata={}, enqueued_at=NOW,
                        finished_at=NOW + timedelta(seconds=number),
                    )
                )  # fmt: skip
        session.commit()
        for shared, seen in (({A}, {"a"}), ({A, B}, {"a", "ab"}), ({B}, set()), (set(), set())):
            condition = thread_seen(session, "demo", frozenset(shared))
            assert set(session.exec(select(Thread.id).where(condition))) == seen, shared
        assert len(session.exec(select(Thread.id).where(thread_seen(session, "demo", None))).all()) == 3
