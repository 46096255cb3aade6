"""JSON bodies as JSON says: UTF-8, no half characters, no NaN, not too deep."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json


class StrictJsonRoute(APIRoute):
    """A route whose JSON body is read strictly. Every router of the gateway has it as its `route_class`.

    Python's own reader takes half a character (an escaped surrogate alone), which nothing behind us could write down.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, which gets a request that reads strictly."""
        handler = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strictly


class _StrictRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            try:
                self._json = from_json(await self.body(), allow_inf_nan=False)
            except ValueError as exc:
                # What FastAPI tells as a request that breaks its schema.
                raise json.JSONDecodeError(f"it is not JSON: {exc}", "", 0) from exc
        return self._json
