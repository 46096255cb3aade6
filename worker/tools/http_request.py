"""Renders an HTTP action over a call's arguments; an argument is data everywhere. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from schemas import template
from schemas.tool import HttpAction
from worker.tools.secrets import Secret
from worker.tools.tool import ToolFailed

# A string that is nothing but one variable: the argument keeps its JSON type.
_ONE_VARIABLE = re.compile(r"\{\{\s*([A-Za-z_][\w-]*(?:\.[\w-]+)*)\s*\}\}")
_AUTHORITY_END = re.compile(r"[/?#]")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_BODY_BY_DEFAULT = ("POST", "PUT", "PATCH")
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Rendered:
    """What is to be sent; `headers` are the action's own, and `content` None is no body."""

    url: str
    headers: tuple[tuple[bytes, bytes], ...]
    content: bytes | None
    content_type: str | None


def takes_its_host_from_an_argument(url: str) -> bool:
    """Return whether something is to be filled in before a URL's path begins."""
    _scheme, _, rest = url.partition("://")
    return "{{" in _AUTHORITY_END.split(rest, maxsplit=1)[0]


def render(action: HttpAction, arguments: Mapping[str, Any], secret: Secret) -> Rendered:
    """Return the request; raises ToolFailed for arguments that would make it another one."""
    variables = {**arguments, **secret.variables}
    content_type, content = _body(action, arguments, variables)
    return Rendered(
        url=_url(action.url, arguments),
        headers=headers(action.headers, variables),
        content=content,
        content_type=content_type,
    )


def rendered(source: str, variables: Mapping[str, Any]) -> str:
    """Render one template; what was not given is the empty string. Raises ToolFailed."""
    try:
        return template.render(source, variables, strict=False)
    except template.TemplateError as exc:
        raise ToolFailed(f"the tool's template cannot be rendered: {exc}") from exc


def headers(sources: Mapping[str, str], variables: Mapping[str, Any]) -> tuple[tuple[bytes, bytes], ...]:
    """Render headers; raises ToolFailed for a value that would begin another header."""
    return tuple((name.encode(), _header(name, source, variables)) for name, source in sources.items())


def _header(name: str, source: str, variables: Mapping[str, Any]) -> bytes:
    value = rendered(source, variables).strip()
    if _CONTROL.search(value):
        raise ToolFailed(f"the header {name} cannot hold a line break or another control character")
    return value.encode()


def _url(source: str, arguments: Mapping[str, Any]) -> str:
    url = rendered(source, _encoded(arguments))
    path = _path(url)
    if any(part in {".", ".."} for segment in path for part in re.split(r"[/\\]", unquote(segment))):
        raise ToolFailed("an argument would change the URL's path: '.' and '..' cannot stand there")
    # An empty argument would make `/users/7` into `/users/`, which may be something else altogether.
    if len(path) != len(full := _path(rendered(source, _encoded(_filled(arguments))))) or any(
        not here and there for here, there in zip(path, full, strict=True)
    ):
        raise ToolFailed("an argument would change the URL's path: it must not be empty there")
    return url


def _path(url: str) -> list[str]:
    try:
        return urlsplit(url).path.split("/")
    except ValueError as exc:
        raise ToolFailed(f"the URL is none: {exc}") from exc


def _encoded(value: Any) -> Any:
    """Percent-encode every string, names too: a template can print those."""
    match value:
        case str():
            return quote(value, safe="")
        case Mapping():
            return {quote(name, safe=""): _encoded(each) for name, each in value.items()}
        case list() | tuple():
            return [_encoded(each) for each in value]
        case _:
            return value


def _filled(value: Any) -> Any:
    """Put something into the place of every empty value."""
    match value:
        case None | "":
            return "x"
        case Mapping():
            return {name: _filled(each) for name, each in value.items()}
        case list() | tuple():
            return [_filled(each) for each in value]
        case _:
            return value


def _body(
    action: HttpAction, arguments: Mapping[str, Any], variables: Mapping[str, Any]
) -> tuple[str | None, bytes | None]:
    """Return the content type and the body."""
    if action.body is None:
        if action.method not in _BODY_BY_DEFAULT:
            return None, None
        body: Any = dict(arguments)
    else:
        body = _filled_in(action.body, variables)
    if body is _ABSENT:
        return None, None
    if isinstance(body, str):
        return "text/plain; charset=utf-8", body.encode()
    return "application/json", json.dumps(body, ensure_ascii=False).encode()


def _filled_in(node: Any, variables: Mapping[str, Any]) -> Any:
    """Render the strings in a body; an argument that was not given leaves out what is it alone."""
    match node:
        case str():
            one = _ONE_VARIABLE.fullmatch(node.strip())
            return rendered(node, variables) if one is None else _looked_up(one[1], variables)
        case Mapping():
            items = ((name, _filled_in(each, variables)) for name, each in node.items())
            return {name: each for name, each in items if each is not _ABSENT}
        case list() | tuple():
            return [each for each in (_filled_in(each, variables) for each in node) if each is not _ABSENT]
        case _:
            return node


def _looked_up(path: str, variables: Mapping[str, Any]) -> Any:
    value: Any = variables
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = value[part]
    return value
