"""Spend caps with the real worker: no call beyond them, and the rows that they leave end as over_budget."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas import Status
from schemas.batch import BatchStatus
from schemas.money import nanos
from schemas.spend import SpendStatus
from tests.at_work import ENDS_WITHIN_S, Scene, Works, completion
from tests.command_line import Installation
from tests.loopback_provider import LoopbackProvider, Reply
from tests.processes import until

LANES = """\
prices:
  - {provider: 127.0.0.1, prompt: 1, completion: 2}
workspaces:
  capped: {spend_cap: 0.002, spend_cap_period: total}
"""
# Each call has 10 tokens of prompt and 5 of completion.
COST_NANO = 10 * 1000 + 5 * 2000
ROWS = 250


@pytest.fixture
def works(tmp_path: Path, servers_dir: Path) -> Iterator[Works]:
    lanes = tmp_path / "lanes.yaml"
    lanes.write_text(LANES, "utf-8")
    # The leases of a killed worker end by themselves.
    with Works(tmp_path, servers_dir=servers_dir, ASSISTQ_LANES=str(lanes)) as works:
        yield works


def plays(scene: Scene, *, delay_s: float = 0.0) -> None:
    scene.assistant(max_tokens=8)
    answer = completion("positive", usage=(10, 5))
    scene.plays(lambda _body, _n: Reply(body=answer.body, delay_s=delay_s))


def account_of(works: Works, scene: Scene) -> SpendStatus:
    (account,) = [account for account in works.producer.accounts() if account.workspace == scene.workspace]
    return account


def holds(status: BatchStatus, scene: Scene, *, rows: int) -> int:
    """Assert that each row succeeded for its price or is over budget without a call; return how many succeeded."""
    succeeded = status.counts[Status.SUCCEEDED]
    assert status.counts == {Status.SUCCEEDED: succeeded, Status.OVER_BUDGET: rows - succeeded}
    assert status.cost_nano == succeeded * COST_NANO
    assert status.reserved_nano == 0
    return succeeded


def test_a_batch_spends_no_more_than_its_cap_and_its_other_rows_are_over_budget(works: Works, tmp_path: Path) -> None:
    scene = Scene(works)
    plays(scene)
    batch = works.producer.enqueue_many([scene.job(f"row {row}") for row in range(ROWS)], spend_cap=0.002)
    status = batch.wait(timeout_s=ENDS_WITHIN_S)
    succeeded = holds(status, scene, rows=ROWS)
    assert succeeded == len(scene.asked)
    # What is left would not hold another call as it may have come out.
    assert 0.9 * nanos("0.002") < status.spent_nano == status.cost_nano <= nanos("0.002")
    with Installation(tmp_path, **works.settings) as command:
        shown = command.run("status", batch.id)
        assert "of 0.002" in shown.out
        (account,) = [each for each in command.run("spend", "--json").json if each["workspace"] == scene.workspace]
        assert account["spent_nano"] == status.cost_nano
        assert scene.workspace in command.run("spend").out


def test_the_batches_of_a_workspace_share_its_cap(works: Works) -> None:
    scene = Scene(works, workspace="capped")
    plays(scene)
    batches = [
        works.producer.enqueue_many([scene.job(f"row {row}") for row in range(ROWS)], batch_id=f"b{number}")
        for number in range(2)
    ]
    ended = [batch.wait(timeout_s=ENDS_WITHIN_S) for batch in batches]
    assert sum(holds(status, scene, rows=ROWS) for status in ended) == len(scene.asked)
    account = account_of(works, scene)
    assert (account.period, account.cap_nano, account.reserved_nano) == ("total", nanos("0.002"), 0)
    assert 0.9 * nanos("0.002") < account.spent_nano == len(scene.asked) * COST_NANO <= nanos("0.002")


def test_what_a_killed_worker_may_have_bought_stays_spent_and_the_cap_holds(works: Works) -> None:
    scene = Scene(works)
    plays(scene, delay_s=0.3)
    batch = works.producer.enqueue_many([scene.job(f"row {row}") for row in range(ROWS)], spend_cap=0.003)
    until(lambda: len(scene.asked) >= 20, what="calls are in flight")
    works.kill()
    works.start_again()
    status = batch.wait(timeout_s=ENDS_WITHIN_S)
    succeeded = holds(status, scene, rows=ROWS)
    billed_nano = len(scene.asked) * COST_NANO
    assert succeeded * COST_NANO <= billed_nano <= status.spent_nano <= nanos("0.003")
    account = account_of(works, scene)
    assert (account.spent_nano, account.reserved_nano) == (status.spent_nano, 0)


def test_a_run_stops_at_its_cap_and_says_what_it_cost(shell: Installation, provider: LoopbackProvider) -> None:
    command = ("run", shell.reviews(100), "--assistant", shell.sentiment(), "--spend-cap", "0.002")
    shell.run(*command).refused("there is no price for model m1 at 127.0.0.1; set one under `prices`")
    assert provider.count == 0

    shell.file("assistq.lanes.yaml", LANES)
    ended = shell.run(*command)
    assert ended.code == 3, ended.err
    statuses = [result["status"] for result in shell.results()]
    assert set(statuses) == {"succeeded", "over_budget"}
    assert statuses.count("succeeded") == provider.count
    assert ", cost 0.00" in ended.out
    assert " of 0.002" in ended.out
    over = next(result for result in shell.results() if result["status"] == "over_budget")
    assert over["error_code"] == "batch_budget"


def test_a_cap_that_is_no_amount_is_a_wrong_command_line(shell: Installation) -> None:
    ended = shell.run("run", shell.reviews(1), "--assistant", shell.sentiment(), "--spend-cap", "much")
    assert ended.code == 2
    assert "much is no amount of money; say a number from 0 to 9,000,000" in ended.err
