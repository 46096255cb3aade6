"""Output: what schema a spec is sent as, and what value a reply holds. Pure."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import jsonschema_rs

from schemas.outcome import Code
from schemas.output import OutputSpec

# Providers with native structured output want an object at the root, so an array or an enum
# value travels inside one.
RESULT_KEY = "result"


class OutputError(Exception):
    """A reply that is not what the spec asks for."""

    def __init__(self, code: Code, message: str) -> None:
        """Keep the reason code beside the words."""
        self.code = code
        super().__init__(message)


def wire_schema(spec: OutputSpec) -> dict[str, Any]:
    """Return the JSON Schema that the provider is asked to keep to."""
    match spec.type:
        case "object":
            return spec.json_schema or {"type": "object"}
        case "array":
            item = dict(spec.json_schema or {})
            # `#/$defs/…` points at the root of the document, which is ours now.
            definitions: dict[str, Any] = {name: item.pop(name) for name in ("$defs", "definitions") if name in item}
            return {**_in_result({"type": "array", "items": item}), **definitions}
        case "enum":
            return _in_result({"type": "string", "enum": list(spec.enum or ())})


def instruction(spec: OutputSpec) -> str:
    """Return what a model is told that has no structured output of its own."""
    return (
        "Answer with one JSON value and nothing else: no explanation, no code fence. "
        f"It must fit this JSON Schema: {json.dumps(wire_schema(spec), ensure_ascii=False)}"
    )


def read_output(spec: OutputSpec, text: str, *, given: Any = None) -> Any:
    """Return the value of a reply; raises OutputError.

    `given` is the value that a hosted assistant read itself; it is checked all the same. An
    enum value is also taken bare: not every provider keeps to the schema.
    """
    if given is None and spec.type == "enum" and text.strip() in (spec.enum or ()):
        return text.strip()
    try:
        value = json.loads(_without_fence(text)) if given is None else given
        # Python reads more than JSON: NaN, 1e999, lone surrogates, which no database takes back.
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise OutputError(Code.OUTPUT_NOT_JSON, f"the reply is not JSON: {exc}") from exc
    if spec.type != "object" and isinstance(value, dict) and set(value) == {RESULT_KEY}:
        value = value[RESULT_KEY]
    match spec.type:
        case "enum":
            if value not in (spec.enum or ()):
                raise _not_valid(f"{value!r} is none of {', '.join(spec.enum or ())}")
        case "object":
            if not isinstance(value, dict):
                raise _not_valid("it is no object")
            _check(spec, value, place="")
        case "array":
            if not isinstance(value, list):
                raise _not_valid("it is no array")
            for index, item in enumerate(value):
                _check(spec, item, place=f"/{index}")
    return value


def _check(spec: OutputSpec, value: Any, *, place: str) -> None:
    if spec.json_schema is None:
        return
    error = next(_validator(json.dumps(spec.json_schema)).iter_errors(value), None)
    if error is not None:
        place += "".join(f"/{part}" for part in error.instance_path)
        raise _not_valid(f"{error.message}{f' at {place}' if place else ''}")


def _not_valid(why: str) -> OutputError:
    return OutputError(Code.OUTPUT_NOT_VALID, f"the reply does not fit the output spec: {why}")


def _in_result(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {RESULT_KEY: schema},
        "required": [RESULT_KEY],
        "additionalProperties": False,
    }


def _without_fence(text: str) -> str:
    """Take off the Markdown code fence that some models put around JSON."""
    lines = text.strip().splitlines()
    if len(lines) >= 2 and lines[0].startswith("```") and lines[-1].strip() == "```":
        return "\n".join(lines[1:-1])
    return text


@lru_cache(maxsize=1024)
def _validator(schema_json: str) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(json.loads(schema_json), offline=True)
