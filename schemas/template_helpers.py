"""The helpers that a template may call (CONTRACT.md 1.5): operators, `$date`, messages, JSON."""

from __future__ import annotations

import operator
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from dotpromptz_handlebars import HelperOptions

from schemas.template_budget import SPEND, spend
from schemas.template_dates import DEFAULT_PATTERN, formatted, parsed
from schemas.template_values import (
    NULL,
    Array,
    compare,
    equal,
    is_nullish,
    is_truthy,
    json_text,
    member,
    text,
)

# Under which key of a rendering's data `$date` finds the present; no path can be written that leads to it.
_NOW: Final = "now]"

Helper = Callable[[list[Any], HelperOptions], Any]


def now_data(now: datetime) -> dict[str, Any]:
    """Return the data that a rendering needs, for `$date` to know the present."""
    return {_NOW: now}


def _comparison(by: Callable[[Any, Any], bool]) -> Helper:
    def helper(args: list[Any], _: HelperOptions) -> bool:
        return compare(*_two(args), by=by)

    return helper


def _eq(args: list[Any], _: HelperOptions) -> bool:
    return equal(*_two(args))


def _ne(args: list[Any], _: HelperOptions) -> bool:
    return not equal(*_two(args))


def _and(args: list[Any], _: HelperOptions) -> bool:
    return all(is_truthy(arg) for arg in args)


def _or(args: list[Any], _: HelperOptions) -> bool:
    return any(is_truthy(arg) for arg in args)


def _two(args: list[Any]) -> list[Any]:
    """Return the first two arguments; one that is not there is undefined."""
    return [*args, None, None][:2]


def _date(args: list[Any], options: HelperOptions) -> str:
    """Return a date by a pattern; the empty string if the date or the pattern is bad.

    Without an argument, or with the pattern only, it is now.
    """
    now: datetime = options.data[_NOW]
    value, pattern = _two(args)
    # A letter of a pattern takes some 2 µs.
    spend(steps=3 * sum(len(arg) for arg in (value, pattern) if isinstance(arg, str)))
    if is_nullish(value) and is_nullish(pattern):
        return formatted(now, DEFAULT_PATTERN)
    if isinstance(value, str) and not (isinstance(pattern, str) or is_truthy(pattern)):
        return formatted(now, value)
    if not isinstance(pattern, str):
        return ""
    when = parsed(value, zone=now.tzinfo)
    return "" if when is None else formatted(when, pattern)


def _to_json(args: list[Any], _: HelperOptions) -> str:
    return json_text(args[0]) if args else ""


def _last(args: list[Any], _: HelperOptions) -> Any:
    array = args[0] if args else None
    return array.values[-1] if isinstance(array, Array) and array.values else NULL


def _lookup(args: list[Any], _: HelperOptions) -> Any:
    container, key = _two(args)
    if not is_truthy(container):
        return container
    return member(container, text(key))


def _length(args: list[Any], _: HelperOptions) -> Any:
    """Return the member `length`; a path that ends in it is written with this helper."""
    return member(args[0], "length") if args else None


def _log(_args: list[Any], _options: HelperOptions) -> str:
    """Log nothing: a template's values are the user's data."""
    return ""


def _format_message(*, tool_calls: bool) -> Helper:
    def helper(args: list[Any], _: HelperOptions) -> str:
        return _message(args[0] if args else None, tool_calls=tool_calls)

    return helper


def _format_messages(*, tool_calls: bool) -> Helper:
    def helper(args: list[Any], _: HelperOptions) -> str:
        messages = args[0] if args else None
        if not isinstance(messages, Array):
            return ""
        return "\n\n".join(_message(message, tool_calls=tool_calls) for message in messages)

    return helper


def _message(message: Any, *, tool_calls: bool) -> str:
    if not is_truthy(message):
        return ""
    content = member(message, "content")
    line = f"[{text(member(message, 'role'))}] {text(content) if is_truthy(content) else ''}"
    calls = member(message, "tool_calls")
    if not tool_calls or not isinstance(calls, Array) or not calls.values:
        return line
    functions = [member(call, "function") for call in calls]
    return "\n".join(
        [
            line,
            "Tool Calls:",
            *(f"  - {text(member(function, 'name'))}({text(member(function, 'arguments'))})" for function in functions),
        ]
    )


def _charged(helper: Helper) -> Helper:
    """Charge for the arguments that a helper reads and for the text that it returns."""

    def charged(args: list[Any], options: HelperOptions) -> Any:
        spend(steps=_copied(options))
        spend(steps=sum(len(arg) for arg in args if isinstance(arg, str)) // 100)
        result = helper(args, options)
        if isinstance(result, str):
            spend(steps=len(result) // 100, chars=len(result))
        return result

    return charged


def _copied(options: HelperOptions) -> int:
    """Return what it cost the engine to copy the context for this call: it does so if that is all the variables."""
    return len(options.context) // 64 if isinstance(options.context, dict) else 0


def _spend(args: list[Any], options: HelperOptions) -> str:
    """Charge for a branch of the template: its steps, and the characters of its text."""
    steps, chars = (arg if isinstance(arg, int) else 0 for arg in _two(args))
    spend(steps=steps + _copied(options), chars=chars)
    return ""


_HELPERS: Final[dict[str, Helper]] = {
    "eq": _eq,
    "ne": _ne,
    "lt": _comparison(operator.lt),
    "gt": _comparison(operator.gt),
    "lte": _comparison(operator.le),
    "gte": _comparison(operator.ge),
    "and": _and,
    "or": _or,
    "$date": _date,
    "toJSON": _to_json,
    "last": _last,
    "lookup": _lookup,
    "$length": _length,
    "log": _log,
    "formatMessage": _format_message(tool_calls=False),
    "formatMessages": _format_messages(tool_calls=False),
    "formatMessageWithToolCalls": _format_message(tool_calls=True),
    "formatMessagesWithToolCalls": _format_messages(tool_calls=True),
}
HELPERS: Final = {name: _charged(helper) for name, helper in _HELPERS.items()} | {SPEND: _spend}
