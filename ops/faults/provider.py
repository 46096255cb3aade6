"""The provider: an OpenAI-compatible server that plays ops/faults/script.py. `python -m ops.faults.provider DIRECTORY`.

It sells a step again whenever it is asked to: what was bought twice is for the auditors to see.
`POST /cut` aborts all connections with a call in flight, `POST /cut-replies` the next replies in the middle.
"""

from __future__ import annotations

import json
import random
import sys

from aiohttp import web

from ops.faults.script import Asked, Kind, reply_to, usage_of
from ops.faults.served import Served, serve, takes
from ops.faults.stage import Stage

# A call meets a 500, for which nothing is sold.
ERROR_SHARE = 0.02
CUT_REPLIES = 3


class Provider:
    """Answers completions."""

    def __init__(self, stage: Stage) -> None:
        """Record in the stage's directory."""
        self._served = Served(stage, "provider")
        self._random = random.Random()  # noqa: S311 - timing is real, and so is chance

    def app(self) -> web.Application:
        """Return the server's application."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_post("/cut", self.cut)
        app.router.add_post("/cut-replies", self.cut_replies)
        return app

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Sell one completion."""
        body = await request.json()
        asked = Asked.read(body["messages"])
        step = request.headers["idempotency-key"]
        message = reply_to(asked, step=step)
        prompt_tokens, completion_tokens = usage_of(body["messages"], message)
        number = self._served.arrive(
            request,
            step=step,
            job=step.rpartition(".")[0],
            history=asked.history,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )
        await takes(asked.task.takes_s)
        if asked.task.kind is Kind.REFUSED:
            return await self._refuse(number, 400, "the script refuses this request", "invalid_request_error")
        if self._random.random() < ERROR_SHARE:
            return await self._refuse(number, 500, "the script fails now and then", "server_error")
        completion = {
            "id": f"chatcmpl-{step}",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": _reason(message)}],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
        }
        return await self._served.reply(number, json.dumps(completion).encode())

    async def cut(self, request: web.Request) -> web.Response:  # noqa: ARG002 - aiohttp's signature
        """Cut what is in flight."""
        return web.json_response({"cut": self._served.cut_now()})

    async def cut_replies(self, request: web.Request) -> web.Response:  # noqa: ARG002
        """Cut the replies that come next."""
        self._served.cut_next(CUT_REPLIES)
        return web.json_response({"cut": CUT_REPLIES})

    async def _refuse(self, number: int, status: int, message: str, kind: str) -> web.StreamResponse:
        error = {"error": {"message": message, "type": kind, "param": None, "code": None}}
        return await self._served.reply(number, json.dumps(error).encode(), status=status, refused=True)


def _reason(message: dict[str, object]) -> str:
    return "tool_calls" if message.get("tool_calls") else "stop"


if __name__ == "__main__":
    stage = Stage.load(sys.argv[1])
    serve(Provider(stage).app(), port=stage.provider_port)
