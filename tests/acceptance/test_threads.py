"""Threads on the real worker: one job at a time, in the order enqueued, and whole turns or none."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas import InvokeJob, Message, Status
from tests.at_work import Scene, Works, completion, said
from tests.loopback_provider import Reply, answers, hang_until, status

# More jobs than the workers can run at once.
MANY = 24


@pytest.fixture(scope="module")
def works_on_postgres(
    servers_dir: Path, tmp_path_factory: pytest.TempPathFactory, postgres_url_of_module: str
) -> Iterator[Works]:
    with Works(tmp_path_factory.mktemp("works"), servers_dir=servers_dir, database_url=postgres_url_of_module) as works:
        yield works


@pytest.fixture(params=["works", "works_on_postgres"], ids=["sqlite", "postgres"])
def scene(request: pytest.FixtureRequest) -> Scene:
    """A scene on each database in turn."""
    return Scene(request.getfixturevalue(request.param))


class _OneAtATime:
    """A provider's script that answers "re: " and what was said last, and counts what is open of each thread."""

    def __init__(self) -> None:
        self.most: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, body: Any, n: int) -> Reply:
        prompt = body["messages"][-1]["content"]
        thread = prompt.split()[0]
        with self._lock:
            self._open[thread] += 1
            self.most[thread] = max(self.most[thread], self._open[thread])
        # Long enough for another job of the thread to come in between, if one could.
        threading.Event().wait(0.01)
        with self._lock:
            self._open[thread] -= 1
        return answers(f"re: {prompt}")


def test_twenty_jobs_of_a_thread_arrive_shuffled_among_other_work_over_4_processes_and_come_out_in_order(
    scene: Scene,
) -> None:
    assert scene.works.processes() == 4
    scene.assistant()
    watch = _OneAtATime()
    scene.plays(watch)
    chance = random.Random(3)  # noqa: S311 - a shuffle, the same each time
    # The thread's jobs ask for different models, so that they wait in different lines.
    numbers = chance.sample(range(20), 20)
    mine = [scene.job(f"mine {number}", thread_id="mine", model=f"{scene.model}-{number % 5}") for number in numbers]
    others = [scene.job(f"other{number % 3} {number}", thread_id=f"other{number % 3}") for number in range(15)]
    others += [scene.job(f"alone{number} x", model=f"{scene.model}-{number % 5}") for number in range(25)]
    places = sorted(chance.sample(range(len(mine) + len(others)), len(mine)))
    mixed = others[:]
    for place, job in zip(places, mine, strict=True):
        mixed.insert(place, job)
    ids = [scene.works.producer.enqueue(job).id for job in mixed]
    results = scene.works.results(ids)
    assert {result.status for result in results} == {Status.SUCCEEDED}

    history = [("system", "Help.")]
    in_order = [body for body in scene.asked if body["messages"][-1]["content"].startswith("mine ")]
    for number, body in zip(numbers, in_order, strict=True):
        history.append(("user", f"mine {number}"))
        assert said(body) == history
        assert body["model"] == f"{scene.model}-{number % 5}"
        history.append(("assistant", f"re: mine {number}"))
    assert scene.turns("mine") == history[1:]
    assert [len(scene.turns(f"other{number}")) for number in range(3)] == [10, 10, 10]
    assert set(watch.most.values()) == {1}
    finished = [result.finished_at for job, result in zip(mixed, results, strict=True) if job.thread_id == "mine"]
    assert finished == sorted(finished)


def test_no_worker_is_held_by_a_thread_whose_first_job_hangs(scene: Scene) -> None:
    scene.assistant()
    released = threading.Event()
    assert scene.works.producer.capacity() < MANY

    def script(body: Any, n: int) -> Reply:
        prompt = body["messages"][-1]["content"]
        return hang_until(released, then=answers("late")) if prompt == "first" else answers(f"re: {prompt}")

    scene.plays(script)
    waiting = [scene.enqueue("first", thread_id="t")]
    waiting += [scene.enqueue(f"next {number}", thread_id="t") for number in range(MANY)]
    scene.works.provider.wait_for_requests(1)
    others = [scene.enqueue(f"other {number}") for number in range(40)]
    assert all(result.succeeded for result in scene.works.results(others))
    assert [body["messages"][-1]["content"] for body in scene.asked].count("first") == 1
    assert not [body for body in scene.asked if body["messages"][-1]["content"].startswith("next")]
    released.set()
    results = scene.works.results(waiting)
    assert [result.output for result in results] == ["late", *(f"re: next {number}" for number in range(MANY))]


def test_a_job_that_fails_in_the_middle_leaves_no_half_turn_and_the_next_one_goes_on(scene: Scene) -> None:
    scene.assistant()

    def script(body: Any, n: int) -> Reply:
        last = body["messages"][-1]
        if last["role"] == "tool" or last["content"] == "bad":
            return status(400)
        if last["content"] == "bad after a tool":
            return completion("let me see", calls=[("c1", "nothing", {})])
        return answers(f"re: {last['content']}")

    scene.plays(script)
    ids = [scene.enqueue(each, thread_id="t") for each in ("one", "bad", "two", "bad after a tool", "three")]
    results = scene.works.results(ids)
    assert [result.status for result in results] == ["succeeded", "failed", "succeeded", "failed", "succeeded"]
    # A failed job names the thread that it was to go on with, and what it paid for.
    assert [(result.thread_id, result.requests) for result in results] == [
        ("t", 1),
        ("t", 0),
        ("t", 1),
        ("t", 1),
        ("t", 1),
    ]
    turns = [(role, text) for each in ("one", "two", "three") for role, text in _turn(each)]
    assert scene.turns("t") == turns
    assert said(scene.asked[-1]) == [("system", "Help."), *turns[:-1]]


def test_a_job_that_fails_first_makes_no_thread_and_one_without_a_thread_gets_a_new_one(scene: Scene) -> None:
    scene.assistant()
    scene.plays(lambda body, _: status(400) if body["messages"][-1]["content"] == "bad" else answers("fine"))
    failed = scene.run("bad")
    assert failed.thread_id is None
    assert scene.run("bad", thread_id="asked-for").status is Status.FAILED
    assert not scene.has_thread("asked-for")
    first, second = scene.succeeds("one"), scene.succeeds("two")
    assert first.thread_id is not None
    assert first.thread_id != second.thread_id
    assert scene.turns(first.thread_id) == [("user", "one"), ("assistant", "fine")]
    scene.succeeds("more", thread_id=first.thread_id)
    assert said(scene.asked[-1])[1:] == [("user", "one"), ("assistant", "fine"), ("user", "more")]
    assert scene.works.row(first.job_id).thread_id == first.thread_id


def test_a_thread_goes_on_across_batches_that_are_open_at_once(scene: Scene) -> None:
    scene.assistant()
    opened = threading.Event()

    def script(body: Any, n: int) -> Reply:
        prompt = body["messages"][-1]["content"]
        return hang_until(opened, then=answers(f"re: {prompt}")) if prompt == "a0" else answers(f"re: {prompt}")

    scene.plays(script)

    def batch(name: str, count: int) -> list[InvokeJob]:
        return [scene.job(f"{name}{number}", thread_id="t") for number in range(count)]

    enqueue_many = scene.works.producer.enqueue_many
    batches = [enqueue_many(batch(name, 4)) for name in ("a", "b")]
    opened.set()
    for each in batches:
        assert each.wait(timeout_s=60).counts == {Status.SUCCEEDED: 4}
    after = enqueue_many(batch("c", 2)).wait(timeout_s=60)
    assert after.counts == {Status.SUCCEEDED: 2}
    order = [f"{name}{number}" for name, count in (("a", 4), ("b", 4), ("c", 2)) for number in range(count)]
    assert [text for role, text in scene.turns("t") if role == "user"] == order
    assert said(scene.asked[-1])[1:] == [turn for prompt in order for turn in _turn(prompt)][:-1]


def test_threads_of_one_name_in_two_workspaces_know_nothing_of_each_other(scene: Scene) -> None:
    other = Scene(scene.works)
    for each in (scene, other):
        each.assistant()
        each.plays(lambda body, _: answers(f"re: {body['messages'][-1]['content']}"))
        each.succeeds(f"of {each.workspace}", thread_id="same")
    for each in (scene, other):
        each.succeeds("again", thread_id="same")
        assert said(each.asked[-1])[1:] == [*_turn(f"of {each.workspace}"), ("user", "again")]


def test_a_history_is_bounded_by_whole_turns_and_keeps_no_tool_call_without_its_result(scene: Scene) -> None:
    scene.assistant(history_tokens=60, max_steps=3)

    def script(body: Any, n: int) -> Reply:
        last = body["messages"][-1]
        if last["role"] == "user" and last["content"].startswith("tool"):
            return completion(None, calls=[("c1", "nothing", {"q": "x" * 40})])
        return answers("y" * 60)

    scene.plays(script)
    for prompt in ("one", "tool two", "three"):
        scene.succeeds(f"{prompt} {'x' * 60}", thread_id="t")
    seen = []
    for number in range(4):
        scene.succeeds(f"last {number} {'x' * 60}", thread_id="t")
        body = scene.asked[-1]["messages"][1:]
        assert body[0]["role"] == "user"
        assert body[-1]["content"].startswith(f"last {number}")
        called = [call["id"] for message in body for call in message.get("tool_calls", ())]
        assert called == [message["tool_call_id"] for message in body if message["role"] == "tool"]
        seen.append([message["content"].split(" x")[0] for message in body if message["role"] == "user"])
    assert seen[0][0] != "one"  # the oldest went
    assert all(len(prompts) > 1 for prompts in seen)  # and not all
    assert [prompts[-2] for prompts in seen] == ["three", "last 0", "last 1", "last 2"]
    # What is not sent again is kept all the same.
    assert [message.role for message in scene.thread("t")].count("user") == 7


def _turn(prompt: str) -> list[tuple[str, str]]:
    return [("user", prompt), ("assistant", f"re: {prompt}")]


def test_a_thread_keeps_images_and_the_names_of_speakers(scene: Scene) -> None:
    scene.assistant()
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
    content = [{"type": "text", "text": "What is this?"}, image]
    message = Message.model_validate({"role": "user", "name": "ann", "content": content})
    scene.plays(lambda *_: answers("A cat."))
    scene.succeeds(message, thread_id="t")
    scene.succeeds("Sure?", thread_id="t")
    assert scene.asked[-1]["messages"][1] == {"role": "user", "name": "ann", "content": content}
