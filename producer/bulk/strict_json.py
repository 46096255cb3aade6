"""JSON as RFC 8259 has it: what the queue, SQL and a provider could not take is refused on reading."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from pydantic_core import from_json

# The workers' parser takes 200 levels, of which a record needs some round a row's values.
_NESTING_MAX = 190


class JsonFaultError(ValueError):
    """A text that is no JSON; the message says what and where."""


def parse(text: str) -> Any:
    """Return the value of a JSON text.

    Raises JsonFaultError, also for NaN and Infinity, numbers beyond a double or of
    thousands of digits, half surrogate pairs and nesting that the workers could not read.
    """
    try:
        value = _DECODER.decode(text)
        if text.count("[") + text.count("{") > _NESTING_MAX:
            _refuse_nesting(text)
        if "\\ud" in text or "\\uD" in text:  # an escaped surrogate, of which a half may be missing
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as exc:
        where = f"character {exc.pos + 1}" if exc.lineno == 1 else f"line {exc.lineno}, character {exc.colno} of it"
        raise JsonFaultError(f"{exc.msg}, at {where}") from exc
    except UnicodeEncodeError as exc:
        raise JsonFaultError("half of a surrogate pair (\\ud800 to \\udfff)") from exc
    except RecursionError as exc:
        raise JsonFaultError("nested too deeply") from exc
    except ValueError as exc:
        raise JsonFaultError(str(exc)) from exc
    return value


def type_name(value: Any) -> str:
    """Return what JSON calls the type of a value."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case str():
            return "text"
        case int() | float():
            return "a number"
        case list():
            return "an array"
        case _:
            return "an object"


def size_bytes(value: Any) -> int:
    """Return how many bytes a value takes: a text as it is, anything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return len(text.encode())


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text} is too large")
    return number


def _refuse_nesting(text: str) -> None:
    """Raise RecursionError if the text, which is JSON, is nested more than _NESTING_MAX levels deep."""
    round_it = 200 - _NESTING_MAX
    try:
        from_json("[" * round_it + text + "]" * round_it)
    except ValueError as exc:
        raise RecursionError from exc


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse_constant)
