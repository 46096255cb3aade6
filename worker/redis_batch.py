"""A Redis client whose script calls of one moment travel together.

The client's own work for a call costs more than the server's. Calls that are made while
others are on their way are sent as one pipeline, not as a transaction: each script stays
atomic by itself, and its answer or error is its caller's alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError, ResponseError

from worker.gather import Gathered

_CALLS_AT_MOST = 128


@dataclass(frozen=True, slots=True)
class _Call:
    script: BatchedScript
    keys: Sequence[Any]
    args: Sequence[Any]


class BatchedScript(AsyncScript):
    """A registered script; called like any other."""

    def __init__(self, redis: BatchedRedis, text: str | bytes) -> None:
        """Bind the script to the client."""
        super().__init__(redis, text)
        self._batch = redis.batch

    async def __call__(
        self, keys: Sequence[Any] | None = None, args: Iterable[Any] | None = None, client: Any = None
    ) -> Any:
        """Run the script; with a `client` of the caller's own, such as a pipeline, it goes its own way."""
        if client is not None:
            return await super().__call__(keys=keys, args=args, client=client)
        return await self._batch.do(_Call(self, keys or (), tuple(args or ())))


class BatchedRedis(Redis):
    """The client; bound to one event loop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what redis.asyncio.Redis takes."""
        super().__init__(*args, **kwargs)
        self.batch: Gathered[_Call, Any] = Gathered(self._run, at_most=_CALLS_AT_MOST)

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> Self:  # type: ignore[override]
        """Return a client of the server at the URL."""
        return cast("Self", super().from_url(url, **kwargs))

    def register_script(self, script: str | bytes) -> BatchedScript:  # type: ignore[override]
        """Return the script, to be called."""
        return BatchedScript(self, script)

    async def _run(self, calls: list[_Call]) -> list[Any]:
        answers = await self._sent(calls)
        unknown = [at for at, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            # A new server, or one that was started again: such a call has done nothing.
            for text in {calls[at].script.script for at in unknown}:
                await self.script_load(text)
            for at, answer in zip(unknown, await self._sent([calls[at] for at in unknown]), strict=True):
                answers[at] = answer
        return answers

    async def _sent(self, calls: list[_Call]) -> list[Any]:
        if len(calls) == 1:
            # A pipeline of one costs half as much again.
            (call,) = calls
            try:
                return [await self.evalsha(call.script.sha, len(call.keys), *call.keys, *call.args)]
            except ResponseError as error:
                return [error]
        async with self.pipeline(transaction=False) as pipe:
            for call in calls:
                pipe.execute_command("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)
            return list(await pipe.execute(raise_on_error=False))
