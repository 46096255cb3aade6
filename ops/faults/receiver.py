"""The receiver of webhooks: verifies each as its users would. `python -m ops.faults.receiver DIRECTORY`."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from ops.faults.facts import Log
from ops.faults.served import serve
from ops.faults.stage import Stage

# A delivery is answered by a 500.
ERROR_SHARE = 0.03


def app(stage: Stage) -> web.Application:
    """Return the server's application."""
    log = Log(stage.log_of("receiver"))
    webhooks = {workspace: Webhook(secret) for workspace, secret in stage.secrets.items()}
    chance = random.Random()  # noqa: S311 - timing is real, and so is chance

    async def take(request: web.Request) -> web.Response:
        body = await request.text()
        event = json.loads(body)
        try:
            webhooks[request.match_info["workspace"]].verify(
                body, {name.lower(): value for name, value in request.headers.items()}
            )
            verified = True
        except WebhookVerificationError:
            verified = False
        answered = chance.random() >= ERROR_SHARE
        log.write(
            about=_about(event),
            event_id=request.headers.get("webhook-id", ""),
            event_type=event["type"],
            body=body,
            verified=verified,
            answered=answered,
        )
        return web.Response(status=204 if answered else 500)

    made = web.Application()
    made.router.add_post("/{workspace}", take)
    return made


def _about(event: dict[str, Any]) -> str:
    """Return what the event tells of: `batch/<id>` or `job/<id>`."""
    kind = event["type"].partition(".")[0]
    return f"{kind}/{event['data'][f'{kind}_id']}"


if __name__ == "__main__":
    stage = Stage.load(sys.argv[1])
    serve(app(stage), port=stage.receiver_port)
