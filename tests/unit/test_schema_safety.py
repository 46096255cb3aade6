"""Schemas that must not reach a worker."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from schemas import schema_safety
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


CHAIN: dict[str, Any] = {
    "$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(3000)} | {"a3000": {}},
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
        (CHAIN, "chain of references that is too long"),
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


@pytest.mark.parametrize("references", [10, 100])
def test_a_schema_is_walked_as_often_whatever_the_number_of_its_references_to_an_anchor(
    references: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    visits = 0
    children = schema_safety._children

    def counted(node: Any) -> list[Any]:
        nonlocal visits
        visits += 1
        return children(node)

    monkeypatch.setattr(schema_safety, "_children", counted)
    properties = {f"p{i}": {"$ref": "#last"} for i in range(references)}
    schema_safety.refuse_bad_schema({"properties": properties, "$defs": {"z": {"$anchor": "last"}}}, name="schema")
    # Depth, references, anchors, what applies: each of them once, over each property, its `$ref` and a few more.
    assert visits <= 4 * (2 * references + 10)


def test_a_loop_through_an_anchor_is_refused() -> None:
    with pytest.raises(ValueError, match="without an end"):
        schema_safety.refuse_bad_schema({"$anchor": "here", "allOf": [{"$ref": "#here"}]}, name="schema")
