"""An HTTP action over arguments: what may be filled in, and what cannot be changed."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.tool import HttpAction
from worker.tools.http_request import Rendered, render, takes_its_host_from_an_argument
from worker.tools.secrets import Secret
from worker.tools.tool import ToolFailed

NO_SECRET = Secret(None)


def action(**fields: Any) -> HttpAction:
    return HttpAction.model_validate({"type": "http", "name": "t", "url": "https://api.test/", **fields})


def made(arguments: dict[str, Any], *, secret: str | None = None, **fields: Any) -> Rendered:
    return render(action(**fields), arguments, Secret(secret))


def test_arguments_are_percent_encoded_into_the_url() -> None:
    url = made({"id": "a/b c?d#e&f=g%2F", "q": "ü&x=1"}, url="https://api.test/users/{{ id }}?q={{q}}").url

    assert url == "https://api.test/users/a%2Fb%20c%3Fd%23e%26f%3Dg%252F?q=%C3%BC%26x%3D1"


def test_numbers_and_nested_arguments_can_stand_in_a_url() -> None:
    url = made({"n": 7, "where": {"city": "São Paulo"}}, url="https://api.test/{{n}}?city={{ where.city }}").url

    assert url == "https://api.test/7?city=S%C3%A3o%20Paulo"


def test_names_that_a_template_prints_are_encoded_too() -> None:
    url = made({"f": {"a&b": "1", "c": "/"}}, url="https://api.test/?{{#each f}}{{@key}}={{this}};{{/each}}").url

    assert url == "https://api.test/?a%26b=1;c=%2F;"


def test_an_argument_is_data_and_no_template() -> None:
    rendered = made(
        {"text": "{{ secret }}"}, secret="hush", headers={"X-Text": "{{ text }}"}, body="{{ text }}!", method="POST"
    )

    assert rendered.headers == ((b"X-Text", b"{{ secret }}"),)
    assert rendered.content == b"{{ secret }}!"


@pytest.mark.parametrize("value", ["..", ".", "../admin", "a/../../admin", "..\\admin", "a/./b"])
def test_an_argument_cannot_walk_through_the_path(value: str) -> None:
    with pytest.raises(ToolFailed, match="path"):
        made({"id": value}, url="https://api.test/users/{{ id }}/orders")


@pytest.mark.parametrize("value", ["", None])
def test_an_empty_argument_cannot_make_a_path_shorter(value: str | None) -> None:
    with pytest.raises(ToolFailed, match="empty"):
        made({"id": value}, url="https://api.test/users/{{ id }}", method="DELETE")


def test_an_empty_or_absent_argument_may_stand_in_the_query() -> None:
    assert made({"q": ""}, url="https://api.test/find?q={{ q }}&p={{ p }}").url == "https://api.test/find?q=&p="


def test_a_part_of_the_url_may_depend_on_an_argument_that_is_not_given() -> None:
    source = "https://api.test/find{{#if page}}/page/{{ page }}{{/if}}"

    assert made({}, url=source).url == "https://api.test/find"
    assert made({"page": "2"}, url=source).url == "https://api.test/find/page/2"


@given(st.text(min_size=1).filter(lambda text: text.encode(errors="ignore").decode() == text))
def test_whatever_an_argument_is_the_url_keeps_its_form(value: str) -> None:
    try:
        url = made({"id": value}, url="https://user@api.test:8443/a/{{ id }}/b?q={{ id }}&end=1#f").url
    except ToolFailed:
        return  # `..` and its like
    parts = urlsplit(url)

    assert (parts.scheme, parts.netloc, parts.fragment) == ("https", "user@api.test:8443", "f")
    assert len(parts.path.split("/")) == 4
    assert parts.path.startswith("/a/")
    assert parts.path.endswith("/b")
    assert parse_qs(parts.query, strict_parsing=True, errors="strict") == {"q": [value], "end": ["1"]}


@pytest.mark.parametrize(
    "url",
    [
        "https://{{ host }}/a",
        "https://api.{{ tld }}/a",
        "https://api.test{{ port }}/a",
        "https://{{ user }}@api.test/a",
        "https://api.test{{#if a}}.evil.test{{/if}}/",
        "https://api.test{{ path }}",
        "https://api.test\\{{ x }}/",
        "https://{{#if a}}x{{/if}}api.test/",
    ],
)
def test_a_host_that_an_argument_could_change_is_seen_before_any_call(url: str) -> None:
    assert takes_its_host_from_an_argument(url)


@pytest.mark.parametrize("url", ["https://api.test/{{ a }}", "https://api.test?q={{ a }}", "https://api.test"])
def test_a_host_that_is_written_out_is_fine(url: str) -> None:
    assert not takes_its_host_from_an_argument(url)


@pytest.mark.parametrize("value", ["a\r\nX-Admin: 1", "a\nb", "a\rb", "a\x00b", "a\x0bb", "a\x7fb"])
def test_an_argument_cannot_add_a_header(value: str) -> None:
    with pytest.raises(ToolFailed, match="X-Text"):
        made({"text": value}, headers={"X-Text": "<{{ text }}>"})


def test_a_header_holds_arguments_and_the_secret() -> None:
    headers = {"Authorization": "Bearer {{ secret }}", "X-Text": "é {{ text }}"}

    assert made({"text": "ü"}, headers=headers, secret="hush\n").headers == (
        (b"Authorization", b"Bearer hush"),
        (b"X-Text", "é ü".encode()),
    )


def test_an_argument_named_secret_does_not_replace_the_secret() -> None:
    assert made({"secret": "mine"}, headers={"X": "{{ secret }}"}, secret="hush").headers == ((b"X", b"hush"),)


def test_the_secret_does_not_get_into_the_url() -> None:
    assert made({}, url="https://api.test/?k={{ secret }}", secret="hush").url == "https://api.test/?k="


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_without_a_body_the_arguments_are_sent_as_json(method: str) -> None:
    rendered = made({"a": 1, "b": ["ü", None]}, method=method)

    assert rendered.content_type == "application/json"
    assert json.loads(rendered.content or b"") == {"a": 1, "b": ["ü", None]}


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_method_that_only_names_something_sends_no_body(method: str) -> None:
    assert made({"a": 1}, method=method).content is None


def test_a_body_keeps_the_types_of_arguments_that_stand_alone() -> None:
    body = {
        "n": "{{ n }}",
        "yes": "{{yes}}",
        "list": "{{ list }}",
        "deep": ["{{ where.city }}", 7, True, None],
        "text": "n is {{ n }}",
        "absent": "{{ absent }}",
        "none": "{{ none }}",
        "items": ["{{ absent }}", "x"],
    }
    arguments = {"n": 1.5, "yes": False, "list": [1, {"a": "b"}], "where": {"city": "{{ n }}"}, "none": None}

    assert json.loads(made(arguments, method="POST", body=body).content or b"") == {
        "n": 1.5,
        "yes": False,
        "list": [1, {"a": "b"}],
        "deep": ["{{ n }}", 7, True, None],
        "text": "n is 1.5",
        "none": None,
        "items": ["x"],
    }


@pytest.mark.parametrize("value", ['"}, "admin": true, {"', "\\", "\n"])
def test_an_argument_cannot_break_out_of_a_json_body(value: str) -> None:
    content = made({"text": value}, method="POST", body={"a": "<{{ text }}>", "b": "{{ text }}"}).content

    assert json.loads(content or b"") == {"a": f"<{value}>", "b": value}


def test_a_body_that_is_text_is_sent_as_text() -> None:
    rendered = made({"text": "ü"}, method="POST", body="say {{ text }}")

    assert (rendered.content_type, rendered.content) == ("text/plain; charset=utf-8", "say ü".encode())


def test_a_secret_is_masked_however_it_is_written() -> None:
    secret = Secret('a/b "c"+ü')

    masked = secret.mask('a/b "c"+ü | a%2Fb%20%22c%22%2B%C3%BC | a/b \\"c\\"+\\u00fc | a/b \\"c\\"+ü | other')

    assert masked == "[secret] | [secret] | [secret] | [secret] | other"


def test_the_part_of_a_secret_at_a_cut_is_taken_off() -> None:
    assert Secret("hushhush").without_part_at_end("text hushh") == "text "
    assert Secret("hushhush").without_part_at_end("text") == "text"


def test_a_secret_does_not_print() -> None:
    assert "hush" not in repr(Secret("hush"))
