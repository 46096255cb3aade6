"""Who waits for which job: one that nobody waits for any more is cancelled.

Its caller may have left this gateway. Or its gateway is gone: Redis keeps of each such job when it was last said that
somebody waits for it (names.WAITERS). That is written in one step with the enqueue, and again every RENEW_EVERY_S;
of which it was not said for LEASE_S, any gateway cancels.

- A job leaves the set as it ends or is cancelled, and a renewal puts none back.
- Two gateways may cancel the same one: the second changes nothing, nor does the first where it had ended.
- While Redis is away nobody can say anything. So a gateway cancels for others only after it has seen Redis for
  LEASE_S without a gap, by Redis's own clock: until then the others have had the time to say it again.
- A gateway that stood still for longer than that finds its jobs cancelled, and its callers are told so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

import redis.exceptions
import structlog
from redis.asyncio import Redis

from producer.answers import text
from producer.cancellation import cancel_script
from producer.gateway.background import in_background
from schemas import names
from schemas.scripts import read_script

_log = structlog.get_logger("assistq.gateway")

# Others cancel what a gateway that stands still for longer holds: more than one may stand still under load.
LEASE_S = 10.0
RENEW_EVERY_S = 2.0
# With more between two looks Redis may have been away so long that others had no time to say it again.
_NO_GAP_S = 5.0
# One call of the script: so many keep the server from others for a few ms.
_JOBS_AT_ONCE = 1000
_TRY_AGAIN_S = 0.5
# What is still to be cancelled when the gateway ends may take this long.
_CLOSE_WITHIN_S = 5.0


class Waiters:
    """The waiting of this gateway's callers, and what is left of others'; bound to one event loop."""

    def __init__(self, connection: Redis) -> None:
        """Use this client."""
        self._tell_script = connection.register_script(read_script("producer.gateway", "waiters.lua"))
        self._cancel_script = connection.register_script(cancel_script())
        self._held: set[str] = set()
        # By Redis's clock: the last look, and the first one since which there was no gap.
        self._looked_ms = 0
        self._since_ms = 0
        # Jobs that are still to be cancelled, and the one task that does it while there are any.
        self._unwanted: set[str] = set()
        self._cancelling: asyncio.Task[None] | None = None

    def running(self) -> AbstractAsyncContextManager[None]:
        """Tell who waits meanwhile, and cancel what others left."""
        return in_background(self._look_forever)

    async def aclose(self) -> None:
        """Wait a little for what is still to be cancelled."""
        if self._cancelling is not None and not self._cancelling.done():
            await asyncio.wait({self._cancelling}, timeout=_CLOSE_WITHIN_S)
            self._cancelling.cancel()

    @contextmanager
    def waiting(self, job_id: str) -> Iterator[None]:
        """Tell meanwhile that somebody waits for the job; what leaves the block by an exception cancels it."""
        self._held.add(job_id)
        try:
            yield
        except BaseException:
            # GeneratorExit among them. Not here: who is cut off may wait for nothing more.
            self._cancel_soon(job_id)
            raise
        finally:
            self._held.discard(job_id)

    async def look(self) -> None:
        """Tell once of all who wait here, then cancel what nobody waits for; raises RedisError."""
        held = list(self._held)
        now_ms, lapsed = 0, list[bytes]()
        for start in range(0, len(held) or 1, _JOBS_AT_ONCE):
            # The last answer counts: only then have all of ours been told of.
            args: list[int | str] = [int(LEASE_S * 1000), *held[start : start + _JOBS_AT_ONCE]]
            now_ms, lapsed = await self._tell_script(keys=[names.WAITERS], args=args)
        if not 0 <= now_ms - self._looked_ms <= _NO_GAP_S * 1000:
            self._since_ms = now_ms
        self._looked_ms = now_ms
        gone = {text(job_id) for job_id in lapsed} - self._unwanted
        if gone and now_ms - self._since_ms >= LEASE_S * 1000:
            _log.warning("waiters_gone", jobs=len(gone))
            for job_id in gone:
                self._cancel_soon(job_id)

    async def _look_forever(self) -> None:
        while True:
            pause_s = RENEW_EVERY_S
            try:
                await self.look()
            except redis.exceptions.RedisError as exc:
                _log.warning("service_fault", part="redis", error=str(exc))
                pause_s = _TRY_AGAIN_S
            except Exception:  # noqa: BLE001 - it is logged; without this task others would cancel all that wait here
                _log.exception("waiters_crashed")
            await asyncio.sleep(pause_s)

    def _cancel_soon(self, job_id: str) -> None:
        self._unwanted.add(job_id)
        if self._cancelling is None or self._cancelling.done():
            self._cancelling = asyncio.create_task(self._cancel_unwanted())

    async def _cancel_unwanted(self) -> None:
        """Cancel them all, as often as it takes: Redis may be away when the caller leaves."""
        while self._unwanted:
            job_id = next(iter(self._unwanted))
            try:
                await self._cancel_script(keys=[], args=[job_id])
            except redis.exceptions.RedisError as exc:
                _log.warning("cancellations_wait", jobs=len(self._unwanted), error=str(exc))
                await asyncio.sleep(_TRY_AGAIN_S)
            else:
                self._unwanted.discard(job_id)
