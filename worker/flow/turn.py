"""Waiting for a turn under the lane's limit, with an ear for a job that is called off meanwhile."""

from __future__ import annotations

import asyncio

from schemas.lane import Lane
from worker.clock import end
from worker.limits.base import Answer, Granted, Limiter
from worker.queue.queue import CalledOff, Claimed, JobQueue

# A job that waited for longer may have been called off.
_LOOK_AGAIN_AFTER_S = 0.25
# Where calls in flight are few and slow, a turn may be minutes away.
_LOOK_EVERY_S = 1.0


async def await_turn(
    limiter: Limiter, queue: JobQueue, claimed: Claimed, *, lane: Lane, tokens: int
) -> Answer | CalledOff:
    """Wait for the turn of a call of `tokens` tokens; a job that is called off keeps no place and no reservation."""
    asking = asyncio.create_task(limiter.reserve(lane, tokens=tokens, owner=claimed.id))
    try:
        called_off = await _called_off_before_its_turn(asking, queue, claimed)
    except BaseException:
        await _give_up(asking, limiter, lane)
        raise
    if called_off is not None:
        await _give_up(asking, limiter, lane)
        return called_off
    answer = asking.result()
    if isinstance(answer, Granted) and answer.waited_s >= _LOOK_AGAIN_AFTER_S:
        called_off = await queue.called_off(claimed)
        if called_off is not None:
            await limiter.cancel(lane, answer)
            return called_off
    return answer


async def _called_off_before_its_turn(
    asking: asyncio.Task[Answer], queue: JobQueue, claimed: Claimed
) -> CalledOff | None:
    while True:
        await asyncio.wait({asking}, timeout=_LOOK_EVERY_S)
        if asking.done():
            return None
        called_off = await queue.called_off(claimed)
        if called_off is not None:
            return called_off


async def _give_up(asking: asyncio.Task[Answer], limiter: Limiter, lane: Lane) -> None:
    await end([asking])
    # The turn may have come while we looked away.
    answer = None if asking.cancelled() or asking.exception() else asking.result()
    if isinstance(answer, Granted):
        await limiter.cancel(lane, answer)
