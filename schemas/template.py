"""Handlebars templates: parse and render (CONTRACT.md 1.5).

The engine is `dotpromptz-handlebars`. Only assistant templates are rendered; variable
values and thread messages are data and never pass through here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from dotpromptz_handlebars import EscapeFunction, Handlebars, StrictModeError


class TemplateError(ValueError):
    """A template that does not parse, or that cannot be rendered."""


class MissingVariableError(TemplateError):
    """A strict rendering needed a variable that was not given."""

    def __init__(self, path: str) -> None:
        """Keep the dotted path of the missing variable, as it stands in the template."""
        self.path = path
        super().__init__(f"variable '{path}' is missing")


def check(source: str) -> None:
    """Raise TemplateError if the source does not parse."""
    _compiled(source, strict=True)


def render(source: str, variables: Mapping[str, Any], *, strict: bool) -> str:
    """Render the template with the variables; nothing is HTML-escaped.

    Strict: a printed variable that was not given raises MissingVariableError; otherwise it
    is the empty string. A condition of `if` or `unless` may always be missing.
    """
    try:
        return _compiled(source, strict=strict)(dict(variables))
    except StrictModeError as exc:
        raise MissingVariableError(_path_of(exc)) from exc
    except ValueError as exc:
        raise TemplateError(str(exc)) from exc


@lru_cache(maxsize=4096)
def _compiled(source: str, *, strict: bool) -> Callable[[Mapping[str, Any]], str]:
    engine = Handlebars(escape_fn=EscapeFunction.NO_ESCAPE, strict=strict)
    try:
        return engine.compile(source)
    except ValueError as exc:
        raise TemplateError(f"template does not parse: {exc}") from exc


def _path_of(exc: StrictModeError) -> str:
    return str(getattr(exc, "path", exc))
