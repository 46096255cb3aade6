"""What tools a caller of the gateway may bring."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from producer.gateway.problem import Kind, Problem
from producer.gateway.tools import TOOLS_MAX, checked_tools
from schemas.tool import ToolSpec

SPEC: TypeAdapter[ToolSpec] = TypeAdapter(ToolSpec)
FUNCTION = {"type": "function", "name": "look"}
HTTP = {"type": "http", "name": "fetch", "url": "https://example.com"}


def tools(*specs: dict[str, Any]) -> list[ToolSpec]:
    return [SPEC.validate_python(spec) for spec in specs]


def test_functions_and_http_tools_without_a_secret_are_taken() -> None:
    given = tools(FUNCTION, HTTP)
    assert checked_tools(given) == tuple(given)
    assert checked_tools([]) == ()


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({**HTTP, "secret": "crm"}, "secret of the worker"),
        ({"type": "python", "name": "word_count"}, "runs a program"),
        ({"type": "mcp", "name": "shell", "command": ["sh"]}, "runs a program"),
        ({"type": "mcp", "name": "remote", "url": "https://example.com"}, "runs a program"),
    ],
)
def test_what_runs_code_or_reaches_secrets_is_refused(spec: dict[str, Any], why: str) -> None:
    with pytest.raises(Problem, match=why) as refused:
        checked_tools(tools(FUNCTION, spec))
    assert refused.value.kind is Kind.FORBIDDEN
    assert spec["name"] in refused.value.message


def test_two_of_one_name_and_too_many_are_refused() -> None:
    many = tools(*({**FUNCTION, "name": f"t{n}"} for n in range(TOOLS_MAX + 1)))
    assert len(checked_tools(many[:-1])) == TOOLS_MAX
    for bad, why in ((many, "more than 128"), (tools(FUNCTION, {**HTTP, "name": "look"}), "two are called 'look'")):
        with pytest.raises(Problem, match=why) as refused:
            checked_tools(bad)
        assert refused.value.kind is Kind.BAD_REQUEST
