"""What an operator sees of lanes, and does to lanes and batches: pause, resume, cancel."""

from __future__ import annotations

from typing import Any, Literal, cast

import redis

from producer.answers import answers, text
from schemas import names
from schemas.errors import ProducerError
from schemas.lane import LaneFault, LaneStatus
from schemas.scripts import read_script

Verb = Literal["pause", "resume", "cancel"]
Kind = Literal["lane", "batch"]

_LANES_AT_MOST = 1_000
# For so long a job of a cancelled lane may come back from a wait and is still cancelled.
_OFF_FOR_S = 7 * 24 * 60 * 60


class Lanes:
    """The lanes that have jobs, or that somebody paused."""

    def __init__(self, connection: redis.Redis) -> None:
        """Use this connection pool."""
        self._redis = connection
        self._stop = connection.register_script(read_script("producer", "stop.lua"))
        self._look = connection.register_script(read_script("schemas", "lanes.lua"))

    def stop(self, verb: Verb, kind: Kind, name: str) -> int:
        """Pause, resume or cancel at once; return how many jobs wait there.

        ProducerError for a batch that is not known or has ended, and for pausing what is no
        lane yet: jobs whose lane nobody knows wait under a name that begins with `?`.
        """
        if verb == "pause" and kind == "lane" and name.startswith("?"):
            raise ProducerError(f"'{name}' stands for jobs whose lane is not known yet; pause their batch instead")
        with answers():
            waiting = int(cast("int", self._stop(keys=[], args=[verb, kind, name, _OFF_FOR_S])))
        if waiting < 0:
            raise ProducerError(f"batch {name} has ended, or is not known to this queue")
        return waiting

    def all(self) -> list[LaneStatus]:
        """Return the lanes that have waiting jobs, stand still or are paused, by name; at most 1,000 of them."""
        with answers():
            reports = cast("list[list[Any]]", self._look(keys=[], args=[_LANES_AT_MOST]))
            stored = cast("dict[bytes, bytes]", self._redis.hgetall(names.FAULTS))
        faults = {text(lane): LaneFault.model_validate_json(fault) for lane, fault in stored.items()}
        found = [LaneStatus.from_report([str(text(value)) for value in report], faults) for report in reports]
        return sorted(found, key=lambda lane: lane.name)
