"""Reads the arguments that a model wrote, and holds them against the tool's schema."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NoReturn

import jsonschema_rs

from worker.tools.tool import ToolFailed

_FAULTS_TOLD = 5


def parse(text: str) -> dict[str, Any]:
    """Return the JSON object in the text, for which nothing at all is empty; raises ToolFailed."""
    try:
        arguments = json.loads(text, parse_constant=_refuse_constant) if text.strip() else {}
        # An escaped half of a surrogate pair is JSON that no UTF-8 can carry.
        json.dumps(arguments, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise ToolFailed(f"the arguments are not JSON: {exc}") from exc
    if not isinstance(arguments, dict):
        raise ToolFailed("the arguments must be a JSON object")
    return arguments


def check(arguments: dict[str, Any], schema: dict[str, Any]) -> None:
    """Raise ToolFailed, which names each fault, unless the arguments fit the JSON Schema."""
    errors = _validator(json.dumps(schema)).iter_errors(arguments)
    faults = [f"{error.message}{_place(error.instance_path)}" for error in errors]
    if faults:
        raise ToolFailed(f"the arguments do not fit the tool's parameters: {'; '.join(faults[:_FAULTS_TOLD])}")


def _place(path: list[str | int]) -> str:
    return f" at {'.'.join(str(part) for part in path)}" if path else ""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


@lru_cache(maxsize=1024)
def _validator(schema_json: str) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(json.loads(schema_json))
