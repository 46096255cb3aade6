"""How many worker processes this machine gets, and how many calls each has in flight."""

from __future__ import annotations

import os

from schemas.settings import Settings

# The local model is bound by the cores: more calls at once make each slower, not all faster.
LOCAL_SLOTS = 4
_LOCAL_PROCESSES = 2
_LOCAL_IN_FLIGHT = 4
_HOSTED_PROCESSES_AT_MOST = 4
# A hosted provider answers many calls at once, and a call that waits costs a process next to nothing.
# A tenth is kept for other workspaces (worker/admission), so that one alone has 288 of these.
_HOSTED_IN_FLIGHT = 320


def usable_cpus() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def plan(settings: Settings, *, local: bool) -> tuple[int, int]:
    """Return (processes, calls in flight of each): the configured values, else what suits the provider."""
    if local:
        processes, in_flight = _LOCAL_PROCESSES, _LOCAL_IN_FLIGHT
    else:
        processes, in_flight = min(usable_cpus(), _HOSTED_PROCESSES_AT_MOST), _HOSTED_IN_FLIGHT
    return settings.processes or processes, settings.threads or in_flight
