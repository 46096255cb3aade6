"""Bodies whose texts can be written down: JSON as JSON says, not too deep, and forms, both in UTF-8."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header

from producer.gateway.problem import Kind, Problem


class StrictJsonRoute(APIRoute):
    """A route whose JSON body is read strictly. Every router of the gateway has it as its `route_class`.

    Python's own reader takes NaN, and half a character (an escaped surrogate alone), which nothing behind us could
    write down. So could a form in some of Python's encodings, such as `unicode_escape`: it has to be in UTF-8.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, which gets a request that reads strictly."""
        handler = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            _refuse_other_encodings(request)
            return await handler(_StrictRequest(request.scope, request.receive))

        return strictly


def _refuse_other_encodings(request: Request) -> None:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    charset = options.get(b"charset", b"utf-8").lower()
    if kind == b"multipart/form-data" and charset not in {b"utf-8", b"utf8"}:
        raise Problem(Kind.BAD_REQUEST, "the form has another charset than utf-8; send it in that", code="bad_charset")


class _StrictRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            try:
                self._json = from_json(await self.body(), allow_inf_nan=False)
            except ValueError as exc:
                # What FastAPI tells as a request that breaks its schema.
                raise json.JSONDecodeError(f"it is not JSON: {exc}", "", 0) from exc
        return self._json
