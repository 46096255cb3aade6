"""The schema that a spec is sent as, and the value that is read from a reply."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.outcome import Code
from schemas.output import OutputSpec
from tests import loopback_provider
from tests.loopback_provider import LoopbackProvider
from worker.flow.output import OutputError, read_output, wire_schema

LABEL = OutputSpec(type="enum", enum=("positive", "negative", "7", "null"))
ANY_OBJECT = OutputSpec(type="object")
ANY_ARRAY = OutputSpec(type="array")
PERSON = OutputSpec(
    type="object",
    json_schema={
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"$ref": "#/$defs/age"}},
        "required": ["name"],
        "$defs": {"age": {"type": "integer", "minimum": 0}},
    },
)
NUMBERS = OutputSpec(type="array", json_schema={"$ref": "#/$defs/number", "$defs": {"number": {"type": "number"}}})

GOOD: list[tuple[OutputSpec, str, Any]] = [
    (LABEL, '{"result": "positive"}', "positive"),
    (LABEL, '"positive"', "positive"),
    (LABEL, "positive", "positive"),
    (LABEL, "  negative\n", "negative"),
    (LABEL, "7", "7"),
    (LABEL, "null", "null"),
    (LABEL, '```json\n{"result": "negative"}\n```', "negative"),
    (ANY_OBJECT, "{}", {}),
    (ANY_OBJECT, '{"result": {"a": 1}}', {"result": {"a": 1}}),
    (ANY_OBJECT, '{"a": "\\u00e4\\u0000", "b": 12345678901234567890}', {"a": "ä\x00", "b": 12345678901234567890}),
    (ANY_OBJECT, '```\n{"a": 1}\n```', {"a": 1}),
    (ANY_OBJECT, '  ```json\n{"a": 1}\n```  \n', {"a": 1}),
    (PERSON, '{"name": "Ada", "age": 36}', {"name": "Ada", "age": 36}),
    (PERSON, '{"name": "Ada", "more": [1]}', {"name": "Ada", "more": [1]}),
    (ANY_ARRAY, "[]", []),
    (ANY_ARRAY, '{"result": [1, "a", null]}', [1, "a", None]),
    (NUMBERS, '{"result": [1, 2.5]}', [1, 2.5]),
    (NUMBERS, "[1, 2.5]", [1, 2.5]),
]
BAD: list[tuple[OutputSpec, str, Code, str]] = [
    (LABEL, "", Code.OUTPUT_NOT_JSON, "not JSON"),
    (LABEL, "I'd say positive", Code.OUTPUT_NOT_JSON, "not JSON"),
    (LABEL, "Positive", Code.OUTPUT_NOT_JSON, "not JSON"),
    (LABEL, '{"result": "neutral"}', Code.OUTPUT_NOT_VALID, "'neutral' is none of positive, negative"),
    (LABEL, '{"label": "positive"}', Code.OUTPUT_NOT_VALID, "none of"),
    (LABEL, '{"result": 7}', Code.OUTPUT_NOT_VALID, "7 is none of"),
    (LABEL, '{"result": null}', Code.OUTPUT_NOT_VALID, "None is none of"),
    (LABEL, '{"result": ["positive"]}', Code.OUTPUT_NOT_VALID, "none of"),
    (ANY_OBJECT, "[1]", Code.OUTPUT_NOT_VALID, "no object"),
    (ANY_OBJECT, "null", Code.OUTPUT_NOT_VALID, "no object"),
    (ANY_OBJECT, '{"a": 1} and more', Code.OUTPUT_NOT_JSON, "not JSON"),
    (ANY_OBJECT, "```json\n{}", Code.OUTPUT_NOT_JSON, "not JSON"),
    (ANY_OBJECT, '{"a": NaN}', Code.OUTPUT_NOT_JSON, "not JSON"),
    (ANY_OBJECT, '{"a": 1e999}', Code.OUTPUT_NOT_JSON, "not JSON"),
    (ANY_OBJECT, '{"a": "\\ud800"}', Code.OUTPUT_NOT_JSON, "not JSON"),
    (ANY_OBJECT, '{"a": ' + "9" * 5000 + "}", Code.OUTPUT_NOT_JSON, "not JSON"),
    (ANY_OBJECT, '{"a": ' * 100_000, Code.OUTPUT_NOT_JSON, "not JSON"),
    (PERSON, "{}", Code.OUTPUT_NOT_VALID, "name"),
    (PERSON, '{"name": "Ada", "age": -1}', Code.OUTPUT_NOT_VALID, "at /age"),
    (ANY_ARRAY, "{}", Code.OUTPUT_NOT_VALID, "no array"),
    (ANY_ARRAY, '{"result": {}}', Code.OUTPUT_NOT_VALID, "no array"),
    (NUMBERS, '[1, "2"]', Code.OUTPUT_NOT_VALID, "at /1"),
]


@pytest.mark.parametrize(("spec", "text", "value"), GOOD, ids=lambda each: repr(each)[:40])
def test_a_fitting_reply_gives_its_value(spec: OutputSpec, text: str, value: Any) -> None:
    read = read_output(spec, text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(("spec", "text", "code", "words"), BAD, ids=lambda each: repr(each)[:40])
def test_any_other_reply_says_why_it_does_not_fit(spec: OutputSpec, text: str, code: Code, words: str) -> None:
    with pytest.raises(OutputError) as caught:
        read_output(spec, text)
    assert caught.value.code is code
    assert words in str(caught.value)


@given(st.sampled_from([LABEL, ANY_OBJECT, ANY_ARRAY, PERSON, NUMBERS]), st.text())
def test_no_text_does_anything_else(spec: OutputSpec, text: str) -> None:
    try:
        value = read_output(spec, text)
    except OutputError:
        return
    json.dumps(value, allow_nan=False).encode()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_any_object_is_read_as_it_was_written(value: dict[str, Any]) -> None:
    assert read_output(ANY_OBJECT, json.dumps(value)) == value


@given(st.lists(json_values, max_size=4))
def test_any_array_is_read_as_it_was_written_with_or_without_its_wrapping(value: list[Any]) -> None:
    assert read_output(ANY_ARRAY, json.dumps(value)) == value
    assert read_output(ANY_ARRAY, json.dumps({"result": value})) == value


class TestWireSchemas:
    def test_an_object_is_asked_for_by_its_own_schema(self) -> None:
        assert wire_schema(PERSON) == PERSON.json_schema
        assert wire_schema(ANY_OBJECT) == {"type": "object"}

    def test_an_enum_travels_in_an_object(self) -> None:
        assert wire_schema(OutputSpec(type="enum", enum=("a", "b"))) == {
            "type": "object",
            "properties": {"result": {"type": "string", "enum": ["a", "b"]}},
            "required": ["result"],
            "additionalProperties": False,
        }

    @pytest.mark.parametrize("place", ["$defs", "definitions"])
    def test_an_arrays_definitions_stay_where_its_references_point(self, place: str) -> None:
        spec = OutputSpec(type="array", json_schema={"$ref": f"#/{place}/n", place: {"n": {"type": "number"}}})
        schema = wire_schema(spec)
        assert schema["properties"]["result"] == {"type": "array", "items": {"$ref": f"#/{place}/n"}}
        assert schema[place] == {"n": {"type": "number"}}
        validator = jsonschema_rs.validator_for(schema)
        assert validator.is_valid({"result": [1, 2.5]})
        assert not validator.is_valid({"result": ["x"]})

    @pytest.mark.parametrize(("spec", "text", "value"), GOOD, ids=lambda each: repr(each)[:40])
    def test_what_is_taken_is_what_was_asked_for(self, spec: OutputSpec, text: str, value: Any) -> None:
        asked = jsonschema_rs.validator_for(wire_schema(spec))
        assert asked.is_valid(value if spec.type == "object" else {"result": value})


def gets_of(provider: LoopbackProvider) -> list[str]:
    """Return a list that gets each path that is asked for from now on."""
    asked: list[str] = []

    class Recording(loopback_provider._Handler):
        def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
            asked.append(self.path)
            super().do_GET()

    provider._server.RequestHandlerClass = Recording
    return asked


class TestSpecs:
    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"type": "enum"}, "needs `enum`"),
            ({"type": "enum", "enum": []}, "needs `enum`"),
            ({"type": "enum", "enum": ["a", "a"]}, "twice"),
            ({"type": "enum", "enum": ["a"], "schema": {}}, "not `schema`"),
            ({"type": "object", "enum": ["a"]}, "not `enum`"),
            ({"type": "array", "enum": ["a"]}, "not `enum`"),
            ({"type": "text"}, "'object', 'array' or 'enum'"),
            ({"type": "object", "schema": {"type": "nope"}}, "no valid JSON Schema"),
            ({"type": "object", "schema": {"properties": 5}}, "no valid JSON Schema"),
            ({"type": "object", "schema": {"pattern": "("}}, "`schema` cannot be used: .* is not a"),
            ({"type": "object", "schema": {"$ref": "#/$defs/nowhere"}}, "'#/\\$defs/nowhere', which is not in it"),
            ({"type": "object", "schema": {"$ref": "other.json"}}, "inline it"),
            ({"type": "object", "schema": {"$schema": "other.json"}}, "no valid JSON Schema"),
            ({"type": "object", "more": 1}, "Extra inputs"),
        ],
        ids=str,
    )
    def test_one_that_cannot_be_kept_to_is_refused(self, fields: dict[str, Any], words: str) -> None:
        with pytest.raises(ValidationError, match=words):
            OutputSpec.model_validate(fields)

    def test_one_that_refers_to_another_host_is_refused_and_the_host_not_asked(
        self, loopback_provider: LoopbackProvider
    ) -> None:
        asked = gets_of(loopback_provider)
        url = f"{loopback_provider.base_url}/models"
        for schema in ({"$ref": url}, {"$dynamicRef": url}, {"$schema": url}, {"items": {"anyOf": [{"$ref": url}]}}):
            with pytest.raises(ValidationError):
                OutputSpec(type="object", json_schema=schema)
        assert asked == []

    @pytest.mark.parametrize(
        "schema",
        [
            {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"},
            {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object"},
            {"type": "object", "properties": {"$ref": {"type": "string"}}},
            {"$ref": "#/definitions/a", "definitions": {"a": {"type": "object"}}},
        ],
        ids=str,
    )
    def test_one_that_can_be_kept_to_is_taken(self, schema: dict[str, Any]) -> None:
        spec = OutputSpec(type="object", json_schema=schema)
        assert read_output(spec, "{}") == {}
        assert OutputSpec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec
