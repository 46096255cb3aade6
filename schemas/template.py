"""Handlebars templates: parse and render (CONTRACT.md 1.5).

The engine is `dotpromptz-handlebars`; `template_syntax`, `template_values` and
`template_helpers` make it behave as Handlebars.js does. Only assistant templates are
rendered; variable values and thread messages are data and never pass through here.

A name without arguments is a helper, if there is one of that name: a variable `last` is
printed by `{{this.last}}`. As an argument, as in `{{#if last}}`, it is the variable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from dotpromptz_handlebars import EscapeFunction, Handlebars, HelperOptions, StrictModeError

from schemas.template_budget import MAX_TAGS, READ_STEPS, Budget, BudgetSpentError, spend
from schemas.template_helpers import HELPERS, Helper, now_data
from schemas.template_syntax import DATA_BRACE, DATA_NULL, PATH_OF, PRINTING, engine_source
from schemas.template_values import NULL, root_of

# What the engine raises for a template or a value that it cannot cope with; it documents ValueError only.
_ENGINE_FAULTS: Final = (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, RecursionError)


class TemplateError(ValueError):
    """A template that does not parse, or that cannot be rendered."""


class TemplateTooDearError(TemplateError):
    """A rendering took more steps, or wrote more characters, than its budget allows."""


class MissingVariableError(TemplateError):
    """A strict rendering needed a variable that was not given."""

    def __init__(self, path: str) -> None:
        """Keep the dotted path of the missing variable, as it stands in the template."""
        self.path = path
        super().__init__(f"variable '{path}' is missing")


def variables_of(variables: Mapping[str, Any], *, budget: Budget) -> Mapping[str, Any]:
    """Return the variables read once, for several renderings; raises TemplateTooDearError if there are too many."""
    try:
        with budget.held():
            return root_of(variables)
    except BudgetSpentError as exc:
        raise TemplateTooDearError(str(exc)) from exc


def refuse_too_many_tags(sources: Iterable[str]) -> None:
    """Raise TemplateError if all of a job's templates have more tags than one may have."""
    if sum(source.count("{{") for source in sources) > MAX_TAGS:
        raise TemplateError(f"the messages have more than {MAX_TAGS} tags; send as variables or messages what is data")


def check(source: str) -> None:
    """Raise TemplateError if the source does not parse."""
    _compiled(source, strict=True)


def render(
    source: str,
    variables: Mapping[str, Any],
    *,
    strict: bool,
    now: datetime | None = None,
    budget: Budget | None = None,
) -> str:
    """Render the template with the variables; nothing is HTML-escaped.

    A variable whose value is the JSON text of an array or an object is that array or
    object. One newline at the end of the output is removed.

    Strict: a printed variable that was not given raises MissingVariableError, a template
    that cannot be parsed or rendered TemplateError. A condition, and an argument of an
    operator, may be missing. Otherwise a missing variable is the empty string, and a
    template that cannot be parsed or rendered is returned as it is.

    A template that costs more than the budget raises TemplateTooDearError, strict or not; several renderings may share
    a budget, by default each has one of its own.

    `now` is what `$date` takes for today, in its own time zone; by default the present, in UTC.
    """
    if "{{" not in source:
        return source.removesuffix("\n")
    try:
        with (budget or Budget()).held():
            return _rendered(source, variables, strict=strict, now=now)
    except BudgetSpentError as exc:
        raise TemplateTooDearError(str(exc)) from exc
    except TemplateError:
        if strict:
            raise
        return source


def _rendered(source: str, variables: Mapping[str, Any], *, strict: bool, now: datetime | None) -> str:
    spend(steps=READ_STEPS * source.count("{{"))
    template = _compiled(source, strict=strict)
    try:
        text = template(root_of(variables), data={DATA_NULL: NULL, DATA_BRACE: "{", **now_data(_zoned(now))})
    except StrictModeError as exc:
        raise MissingVariableError(exc.path) from exc
    except (TemplateError, BudgetSpentError):
        raise
    except _ENGINE_FAULTS as exc:
        raise TemplateError(str(exc)) from exc
    return text.removesuffix("\n")


def _zoned(now: datetime | None) -> datetime:
    if now is None:
        return datetime.now(UTC)
    return now.replace(tzinfo=UTC) if now.tzinfo is None else now


@lru_cache(maxsize=1024)
def _compiled(source: str, *, strict: bool) -> Callable[..., str]:
    try:
        return _ENGINES[strict].compile(engine_source(source))
    except _ENGINE_FAULTS as exc:
        raise TemplateError(f"template does not parse: {exc}") from exc


def _engine(*, strict: bool) -> Handlebars:
    engine = Handlebars(escape_fn=EscapeFunction.NO_ESCAPE, strict=strict)
    for name, helper in HELPERS.items():
        engine.register_helper(name, _refusing_missing(helper) if strict and name in PRINTING else helper)
    return engine


def _refusing_missing(helper: Helper) -> Helper:
    def refusing(args: list[Any], options: HelperOptions) -> Any:
        for index, arg in enumerate(args):
            path = options.hash.get(PATH_OF.format(index)) if arg is None else None
            if path is not None:
                raise MissingVariableError(path)
        return helper(args, options)

    return refusing


_ENGINES: Final = {strict: _engine(strict=strict) for strict in (True, False)}
