"""`assistq lanes`, `pause`, `resume` and `cancel`: what waits where, and stopping it."""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from producer.cli import access
from producer.cli.console import listing, out, print_json, say, shown
from producer.lanes import Kind, Lanes, Verb
from schemas.errors import InputError
from schemas.lane import LaneStatus
from schemas.settings import Settings


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def lanes(*, as_json: bool) -> None:
    """List the lanes (workspace/provider/model) in which jobs wait, or which are paused."""
    with access.running_queue(Settings.from_env()) as producer:
        found = producer.lanes.all()
    if as_json:
        print_json([{**lane.model_dump(mode="json"), "waiting": lane.waiting} for lane in found])
        return
    table = listing("lane", "waiting", "interactive", "oldest", "state")
    for lane in found:
        table.add_row(shown(lane.name), str(lane.waiting), str(lane.interactive), _age(lane), shown(_state(lane)))
    out.print(table)


def _stopper(verb: Verb, says: str, told: Callable[[int], str]) -> click.Command:
    @click.command(name=verb, help=says)
    @click.argument("batch_id", metavar="[BATCH]", required=False)
    @click.option("--lane", help="A lane instead, as `assistq lanes` names it: workspace/provider/model.")
    def command(batch_id: str | None, lane: str | None) -> None:
        if (batch_id is None) == (lane is None):
            raise click.UsageError("name a BATCH or a --lane, one of the two")
        kind: Kind = "batch" if lane is None else "lane"
        name = batch_id if lane is None else lane
        assert name is not None  # noqa: S101 - one of the two is given
        with access.running_queue(Settings.from_env()) as producer:
            if kind == "batch":
                _check_batch(producer.batch(name).status() is not None, name)
            else:
                _check_lane(producer.lanes, name)
            waiting = producer.lanes.stop(verb, kind, name)
            if verb == "cancel" and kind == "lane" and waiting == 0:
                raise InputError(f"no job waits in lane '{name}'", mend="`assistq lanes` lists those in which some do")
        say(f"{kind} {name}: {told(waiting)}")

    return command


pause = _stopper(
    "pause",
    "Start no more jobs of BATCH, or of a lane, until `assistq resume`. What runs goes on.",
    lambda waiting: f"paused; {waiting} jobs wait",
)
resume = _stopper(
    "resume", "Start jobs of a paused BATCH or lane again.", lambda waiting: f"resumed; {waiting} jobs wait"
)
cancel = _stopper(
    "cancel",
    "End the jobs of BATCH that have not ended as cancelled; of a lane, those that wait in it now.\n\n"
    "Calls in flight are finished: they are paid for.",
    lambda waiting: f"cancelled; {waiting} waiting jobs end without a call",
)


def _check_batch(known: bool, name: str) -> None:
    if not known:
        raise InputError(f"batch '{name}' is not known to the queue", mend="`assistq status` lists the batches")


def _check_lane(known: Lanes, name: str) -> None:
    if name.count("/") < 2 and name not in {lane.name for lane in known.all()}:
        raise InputError(f"'{name}' is no lane", mend="name it workspace/provider/model; `assistq lanes` lists them")


def _age(lane: LaneStatus) -> str:
    return "" if lane.oldest_ms is None else f"{max(0.0, time.time() - lane.oldest_ms / 1000):.0f} s"


def _state(lane: LaneStatus) -> str:
    parts = ["paused"] if lane.paused else []
    if lane.fault is not None:
        parts.append(f"{lane.fault.code.value}: {lane.fault.reason}")
    return "; ".join(parts) or "open"
