"""The tool server: counts side effects. `python -m ops.faults.tool_server DIRECTORY`.

A call names itself by its arguments, and counts as run when it arrives.
"""

from __future__ import annotations

import json
import sys

from aiohttp import web

from ops.faults.served import Served, serve, takes
from ops.faults.stage import Stage


def app(stage: Stage) -> web.Application:
    """Return the server's application."""
    served = Served(stage, "tools")

    async def effect(request: web.Request) -> web.StreamResponse:
        said = await request.json()
        key = request.headers.get("idempotency-key")
        number = served.arrive(request, call=said["call"], job=said["job"], idempotency_key=key)
        await takes(said["takes_s"])
        return await served.reply(number, json.dumps({"done": said["call"]}).encode())

    made = web.Application()
    made.router.add_post("/effect", effect)
    return made


if __name__ == "__main__":
    stage = Stage.load(sys.argv[1])
    serve(app(stage), port=stage.tools_port)
