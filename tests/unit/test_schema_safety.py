"""Schemas that must not reach a worker."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.output import OutputSpec
from schemas.schema_safety import MAX_APPLIED, MAX_BYTES, MAX_DEPTH


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


DOUBLING: dict[str, Any] = {
    "$defs": {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(20)} | {"a20": {}},
    "$ref": "#/$defs/a0",
}


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "nope"}, "no valid JSON Schema"),
        ({"type": 3}, "no valid JSON Schema"),
        ({"$ref": "https://example.com/schema"}, "outside itself"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "outside itself"),
        ({"$ref": "#"}, "without an end"),
        ({"allOf": [{"$ref": "#"}]}, "without an end"),
        (
            {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"not": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"},
            "without an end",
        ),
        ({"$ref": "#/$defs/missing"}, "not in it"),
        (DOUBLING, f"more than {MAX_APPLIED}"),
        ({"description": "x" * (MAX_BYTES + 1)}, "larger than"),
        (nested(MAX_DEPTH), "nested deeper"),
        ({"pattern": "("}, "cannot be used"),
    ],
)
def test_a_schema_that_is_invalid_remote_endless_or_explosive_is_refused(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        OutputSpec.model_validate({"type": "object", "schema": schema})


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}},
        {"$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}}}}, "$ref": "#/$defs/node"},
        {"anyOf": [{"type": "string"}, {"type": "null"}]},
        {"properties": {"$ref": {"type": "string"}}},
    ],
)
def test_a_schema_that_recurs_through_a_property_or_is_plain_is_taken(schema: dict[str, Any]) -> None:
    assert OutputSpec.model_validate({"type": "object", "schema": schema}).json_schema == schema
