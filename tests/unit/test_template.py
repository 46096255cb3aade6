"""Handlebars templates: what is rendered, what is missing, and what is data."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import template
from schemas.template import MissingVariableError, TemplateError

RENDERED: list[tuple[str, dict[str, Any], str]] = [
    ("plain text", {}, "plain text"),
    ("", {}, ""),
    ("Hello {{ name }}!", {"name": "Ada"}, "Hello Ada!"),
    ("{{a.b.c}}", {"a": {"b": {"c": "deep"}}}, "deep"),
    ("{{a.[0]}}", {"a": ["first"]}, "first"),
    ("{{with-dash}} {{ä}}", {"with-dash": 1, "ä": 2}, "1 2"),
    ("{{n}} {{f}} {{t}} {{none}}", {"n": 0, "f": 1.5, "t": False, "none": None}, "0 1.5 false "),
    ("{{list}}", {"list": [1, 2]}, "1,2"),
    ("{{a}} & {{{a}}}", {"a": "<b>\"'&"}, "<b>\"'& & <b>\"'&"),
    ("{{#if a}}yes{{else}}no{{/if}}", {"a": 1}, "yes"),
    ("{{#if a}}yes{{else}}no{{/if}}", {"a": []}, "no"),
    ("{{#unless a}}no{{/unless}}", {"a": ""}, "no"),
    ("{{#each items}}{{@index}}:{{this}};{{/each}}", {"items": ["a", "b"]}, "0:a;1:b;"),
    ("{{#each items}}{{name}}{{/each}}", {"items": [{"name": "x"}, {"name": "y"}]}, "xy"),
    ("{{#each a}}{{../b}}{{/each}}", {"a": [1, 2], "b": "!"}, "!!"),
    ("{{#with a}}{{b}}{{/with}}", {"a": {"b": 2}}, "2"),
    ("{{! a note }}text", {}, "text"),
    (r"\{{kept}}", {}, "{{kept}}"),
    ("a\n{{x}}\nb\n\n", {"x": "\n"}, "a\n\n\nb\n"),  # one newline at the end goes
]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("source", "variables", "text"), RENDERED, ids=[source for source, _, _ in RENDERED])
def test_a_template_is_rendered(source: str, variables: dict[str, Any], text: str, strict: bool) -> None:
    assert template.render(source, variables, strict=strict) == text


@pytest.mark.parametrize(
    ("source", "variables", "path"),
    [
        ("{{ name }}", {}, "name"),
        ("{{a.b}}", {"a": {}}, "a.b"),
        ("{{a.b}}", {}, "a"),
        ("{{#if a}}{{b}}{{/if}}", {"a": True}, "b"),
        ("{{#each items}}{{name}}{{/each}}", {"items": [{}]}, "name"),
        ("{{constructor}}{{__proto__}}", {}, "constructor"),
        ("{{__class__}}", {}, "__class__"),
        ("{{a.__class__}}", {"a": "text"}, "a.__class__"),
    ],
)
def test_a_variable_that_is_printed_and_not_given_is_missing(source: str, variables: dict[str, Any], path: str) -> None:
    with pytest.raises(MissingVariableError) as caught:
        template.render(source, variables, strict=True)
    assert path in caught.value.path
    assert caught.value.path in str(caught.value)
    assert "class" not in template.render(source, variables, strict=False)


@pytest.mark.parametrize("source", ["{{#if a}}x{{/if}}", "{{#unless a}}{{/unless}}", "{{#each a}}x{{/each}}"])
def test_a_condition_may_be_missing(source: str) -> None:
    assert template.render(source, {}, strict=True) == ""


@pytest.mark.parametrize("source", ["{{", "{{#if a}}", "{{/if}}", "{{a", "{{#if}}x", "{{#each a}}{{/if}}", "{{}}"])
def test_what_does_not_parse_is_refused_before_anything_is_rendered(source: str) -> None:
    with pytest.raises(TemplateError, match="does not parse"):
        template.check(source)


@pytest.mark.parametrize("source", ["{{> partial}}", "{{shout name}}", "{{#if (shout a 1)}}x{{/if}}"])
def test_a_helper_or_partial_that_is_not_there_is_an_error_of_the_template(source: str) -> None:
    with pytest.raises(TemplateError):
        template.render(source, {"name": "x", "a": 1}, strict=True)


@given(st.text())
def test_a_value_is_data_and_never_a_template(value: str) -> None:
    assert template.render("[{{value}}]", {"value": value, "secret": "S3CRET"}, strict=True) == f"[{value}]"


@pytest.mark.parametrize("value", ["{{secret}}", "{{{secret}}}", "{{#if secret}}{{secret}}{{/if}}", r"\{{secret}}"])
def test_a_value_that_looks_like_a_template_is_not_rendered(value: str) -> None:
    assert template.render("{{a}}", {"a": value, "secret": "S3CRET"}, strict=True) == value


def test_rendering_does_not_change_the_variables() -> None:
    variables = {"a": {"b": [1]}}
    template.render("{{#with a}}{{#each b}}{{this}}{{/each}}{{/with}}", variables, strict=True)
    assert variables == {"a": {"b": [1]}}
