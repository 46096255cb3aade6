"""Templates in Langtail's dialect, end to end: CONTRACT rows 10-17. The language itself is tested in tests/unit."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from schemas.template import render
from tests.at_work import Scene, said
from tests.gateway.langtail_calls import invoke, invoked, thread_of
from tests.loopback_provider import answers


def sent(client: httpx.Client, scene: Scene, template: str, **variables: Any) -> str:
    """Return what the provider is sent of a template of the request."""
    scene.assistant(variables={"stored": "default"})
    scene.plays(lambda *_: answers("ok"))
    body = {"template": [{"role": "user", "content": template}], "variables": variables}
    answer = invoke(client, scene, body)
    assert answer.status_code == 200, answer.text
    return str(scene.asked[-1]["messages"][-1]["content"])


def test_row_10_a_variable_is_the_requests_before_the_stored_default(client: httpx.Client, scene: Scene) -> None:
    scene.assistant(template=[{"role": "user", "content": "{{a}} {{ b }}"}], variables={"a": "old", "b": "default"})
    scene.replies(answers("ok"))
    invoke(client, scene, {"variables": {"a": "new"}})
    assert said(scene.asked[0])[-1] == ("user", "new default")


def test_row_11_a_missing_variable_is_empty_although_the_assistant_is_strict(
    client: httpx.Client, scene: Scene
) -> None:
    scene.assistant(
        instructions="For {{ who }}.",
        template=[{"role": "user", "content": "Hello, {{ name }}!"}],
        strict_variables=True,
    )
    scene.replies(answers("ok"))
    assert invoke(client, scene, {}).status_code == 200
    assert said(scene.asked[0]) == [("system", "For ."), ("user", "Hello, !")]
    # Of other callers it demands them.
    assert scene.run("Hi").error_code == "missing_variable"


@pytest.mark.parametrize("bad", ["{{#if x}}open", "{{ unclosed", "{{/if}}", "{{#each}}{{/if}}"])
def test_row_12_a_template_that_does_not_parse_is_sent_as_it_is(client: httpx.Client, scene: Scene, bad: str) -> None:
    assert sent(client, scene, bad, x="1") == bad


def test_row_13_blocks(client: httpx.Client, scene: Scene) -> None:
    template = (
        "{{#if a}}\nA\n{{else if b}}\nB\n{{else}}\nC\n{{/if}}|{{#unless a}}U{{/unless}}|"
        "{{#with o}}{{k}}{{/with}}|{{#each l}}{{@index}}{{this}} {{/each}}"
    )
    text = sent(client, scene, template, b="yes", o='{"k": "v"}', l='["x", "y"]')
    assert text == "B|U|v|0x 1y "


def test_row_14_operators(client: httpx.Client, scene: Scene) -> None:
    conditions = ["eq n 3", "ne n 3", "lt n 4", "gt n 4", "lte n 3", "gte n 4", "and n m", "or m n"]
    template = "".join(f"{{{{#if ({condition})}}}}1{{{{else}}}}0{{{{/if}}}}" for condition in conditions)
    assert sent(client, scene, template, n="3") == "10101001"


def test_row_15_dates(client: httpx.Client, scene: Scene) -> None:
    before = render("{{$date}}", {}, strict=False)
    text = sent(client, scene, '{{$date}}|{{$date "2024-09-01" "MM"}}|{{$date "no" "MM"}}')
    assert text in {f"{day}|09|" for day in (before, render("{{$date}}", {}, strict=False))}


def test_row_16_values_that_are_json_texts_or_json_are_values(client: httpx.Client, scene: Scene) -> None:
    template = "{{#each l}}{{this}};{{/each}} {{o}} {{{h}}} {{h}} {{#if no}}true{{/if}}"
    variables = {"l": "[1, 2]", "o": '{"k": 1}', "h": "<b>&", "no": "false"}
    expected = '1;2; {\n  "k": 1\n} <b>& <b>& true'
    assert sent(client, scene, template, **variables) == expected
    # Langtail's client sends texts; others may send what they mean.
    assert sent(client, scene, template, **variables | {"l": [1, 2], "o": {"k": 1}}) == expected


def test_row_17_messages_and_the_thread_are_never_rendered(client: httpx.Client, scene: Scene) -> None:
    scene.assistant(template=[{"role": "user", "content": "{{ x }}"}])
    scene.plays(lambda *_: answers("{{ x }}!"))
    thread_id = thread_of(invoked(client, scene, messages=["{{ x }}?"], variables={"x": "1"}))
    invoked(client, scene, threadId=thread_id, messages=["{{#if"], variables={"x": "{{ y }}", "y": "2"})
    assert [text for _, text in said(scene.asked[1])] == ["Help.", "{{ y }}", "{{ x }}?", "{{ x }}!", "{{#if"]
