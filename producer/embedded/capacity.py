"""How many worker processes and threads this machine gets."""

from __future__ import annotations

import os

from schemas.settings import Settings

# The local model is bound by the cores: more calls at once make each slower, not all faster.
LOCAL_SLOTS = 4
_LOCAL_PROCESSES = 2
_LOCAL_THREADS = 4
_HOSTED_PROCESSES_AT_MOST = 4
_HOSTED_THREADS = 64


def usable_cpus() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def plan(settings: Settings, *, local: bool) -> tuple[int, int]:
    """Return (processes, threads of each): the configured values, else what suits the provider."""
    if local:
        processes, threads = _LOCAL_PROCESSES, _LOCAL_THREADS
    else:
        processes, threads = min(usable_cpus(), _HOSTED_PROCESSES_AT_MOST), _HOSTED_THREADS
    return settings.processes or processes, settings.threads or threads
