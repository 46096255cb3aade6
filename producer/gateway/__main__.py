"""`python -m producer.gateway`: serves the gateway until it is told to stop."""

from __future__ import annotations

import asyncio
import sys

import uvicorn

from producer.gateway.app import create_app
from schemas.errors import AssistqError
from schemas.settings import Settings

# What is told at the end of the grace is written within this.
_ANSWER_WITHIN_S = 5


class Server(uvicorn.Server):
    """Says where it listens once it does: port 0 is any that is free."""

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Start, then say so on stderr."""
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            print(f"gateway: http://{host}:{port}", file=sys.stderr, flush=True)  # noqa: T201 - a command says it

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Take no more requests, and give those that wait for a job the grace that they have."""
        state = self.config.app.state  # type: ignore[union-attr]
        cut_off = asyncio.get_running_loop().call_later(state.parts.settings.shutdown_grace_s, state.parts.calls.shut)
        await super().shutdown(sockets)  # type: ignore[arg-type]
        cut_off.cancel()


def main() -> None:
    """Serve."""
    try:
        settings = Settings.from_env()
        config = uvicorn.Config(
            create_app(settings),
            host=settings.http_host,
            port=settings.http_port,
            access_log=False,
            log_level="warning",
            # Longer than those who wait are given: they are told before.
            timeout_graceful_shutdown=int(settings.shutdown_grace_s) + _ANSWER_WITHIN_S,
        )
        Server(config).run()
    except AssistqError as exc:
        sys.exit(f"error: {exc}")


if __name__ == "__main__":
    main()
