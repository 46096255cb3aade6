"""How long a caller waits for a job that it enqueues: `Prefer: wait=N` (RFC 7240) or `wait_s`."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Annotated

from fastapi import Depends, Header, Query

from producer.gateway.access import Caller
from producer.gateway.dialects.own.job_view import JobView, find_job
from producer.gateway.parts import Parts
from schemas import names

# A word that was lost is made up for by looking again.
_LOOK_AGAIN_S = 1.0
_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?([0-9]{1,6})\"?\s*(?:$|[,;])", re.IGNORECASE)

_Prefer = Annotated[str | None, Header(max_length=1024, description="`wait=N`: wait up to N seconds for the end")]
_WaitS = Annotated[float | None, Query(ge=0, le=86_400, allow_inf_nan=False, description="The same as a parameter")]


def _asked(prefer: _Prefer = None, wait_s: _WaitS = None) -> float | None:
    """Return the seconds that were asked for, None if none were; what else is preferred is ignored, as it may be."""
    if wait_s is not None:
        return wait_s
    found = _WAIT.search(prefer or "")
    return float(found[1]) if found else None


WaitS = Annotated[float | None, Depends(_asked)]


async def end_of(parts: Parts, job_id: str, caller: Caller, *, wait_s: float) -> JobView:
    """Return the job once it has ended, or as it is after `wait_s`, which the installation's time limit bounds."""
    until_s = time.monotonic() + min(wait_s, parts.settings.http_timeout_s)
    async with parts.switchboard.listening(names.done_channel(job_id)) as news:
        while True:
            news.clear()
            job = await find_job(parts, job_id, caller)
            left_s = until_s - time.monotonic()
            if job.ended or left_s <= 0:
                return job
            try:
                async with asyncio.timeout(min(left_s, _LOOK_AGAIN_S)):
                    await news.wait()
            except TimeoutError:
                continue
