"""Dramatiq's master is stopped: its workers need nothing of it, not even a reader of their logs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.at_work import Scene, Works

# What these log is several times what a pipe holds.
ROWS = 400


@pytest.fixture
def works(tmp_path: Path, servers_dir: Path) -> Iterator[Works]:
    with Works(tmp_path, servers_dir=servers_dir, ASSISTQ_PROCESSES="1", ASSISTQ_THREADS="16") as works:
        yield works


def test_the_workers_of_a_stopped_master_go_on(works: Works) -> None:
    scene = Scene(works)
    scene.assistant()
    os.kill(works.process_group, signal.SIGSTOP)
    batch = works.producer.enqueue_many(scene.job(f"row {number}") for number in range(ROWS))
    ended = batch.wait(timeout_s=60)
    assert ended.counts == {"succeeded": ROWS}
    assert len(scene.asked) == ROWS
