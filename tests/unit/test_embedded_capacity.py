from __future__ import annotations

import pytest

from producer.embedded import capacity
from schemas.settings import Settings


def test_the_local_model_gets_few_calls_at_once_however_many_processors_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capacity, "usable_cpus", lambda: 32)

    assert capacity.plan(Settings(), local=True) == (2, 4)


@pytest.mark.parametrize(("cpus", "processes"), [(1, 1), (3, 3), (32, 4)])
def test_a_hosted_provider_gets_a_process_for_each_processor_up_to_four(
    monkeypatch: pytest.MonkeyPatch, cpus: int, processes: int
) -> None:
    monkeypatch.setattr(capacity, "usable_cpus", lambda: cpus)

    assert capacity.plan(Settings(), local=False) == (processes, 256)


@pytest.mark.parametrize("local", [True, False])
def test_what_is_configured_wins(local: bool) -> None:
    assert capacity.plan(Settings(processes=7, threads=9), local=local) == (7, 9)


def test_one_configured_value_leaves_the_other_as_planned() -> None:
    assert capacity.plan(Settings(threads=1), local=True) == (2, 1)
