"""JSON values as a template sees them: they print, compare and convert as in JavaScript."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, ItemsView, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, NoReturn

from schemas.template_budget import spend

# Possessive: a text of a million digits and a letter must not be tried at every length.
_NUMBER = re.compile(r"[+-]?(?:Infinity|(?:\d++\.?\d*+|\.\d++)(?:[eE][+-]?\d++)?)")
_RADIX = re.compile(r"0(?:[xX][0-9a-fA-F]+|[oO][0-7]+|[bB][01]+)")
# Beyond these, JavaScript writes a number with an exponent.
_EXPONENT_FROM = 1e21
_EXPONENT_BELOW = 1e-6


# A tag that prints a text of so many characters is dear enough.
_SHORT_CHARS = 64


class Array:
    """An array: it prints as its items, joined by commas, and knows its `length`.

    For the engine it is a sequence, over which it iterates, and a mapping, in which it finds `length`.
    """

    __slots__ = ("values",)

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        spend(steps=len(self.values))
        return iter(self.values)

    def __contains__(self, key: object) -> bool:
        return key == "length" or (isinstance(key, str) and key.isdecimal() and int(key) < len(self.values))

    def __getitem__(self, key: str | int) -> Any:
        return len(self.values) if key == "length" else self.values[int(key)]

    def keys(self) -> tuple[()]:
        """Return nothing: the engine copies by them, for each helper, the context that no helper of ours reads."""
        return ()

    def items(self) -> Iterator[tuple[int, Any]]:
        """Return indices and values."""
        spend(steps=len(self.values))
        return iter(enumerate(self.values))

    def __str__(self) -> str:
        spend(steps=len(self.values))
        return ",".join("" if is_nullish(value) else text(value) for value in self.values)


class Null(Array):
    """An explicit null: it prints nothing, is false and has no members; None is `undefined`."""

    __slots__ = ()

    def __contains__(self, key: object) -> bool:
        return False


Sequence.register(Array)
Mapping.register(Array)
NULL: Final = Null([])


class Number(float):
    """A number that JavaScript writes in another way than Python does."""

    __slots__ = ()

    def is_integer(self) -> bool:
        """Return False, so that the engine prints the number by its text."""
        return False

    def __str__(self) -> str:
        return _number_text(float(self))


class Object(float):
    """An object: it prints as JSON, indented by two spaces.

    The engine prints a mapping as `[object Object]`, but before it looks for mappings it
    prints a float that is no whole number by its text. So an object is both.
    """

    __slots__ = ("values",)

    values: dict[str, Any]

    def __new__(cls, values: dict[str, Any]) -> Object:
        """Wrap the members."""
        self = super().__new__(cls, 0.5)
        self.values = values
        return self

    def is_integer(self) -> bool:
        """Return False, so that the engine prints the object by its text."""
        return False

    def __contains__(self, key: object) -> bool:
        return key in self.values

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def keys(self) -> tuple[()]:
        """Return nothing, as an array does."""
        return ()

    def items(self) -> ItemsView[str, Any]:
        """Return the members."""
        spend(steps=len(self.values))
        return self.values.items()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __str__(self) -> str:
        return json_text(self)


Mapping.register(Object)


class Text(str):
    """A text that charges for being printed; short ones are charged by their tag."""

    __slots__ = ()

    def __str__(self) -> str:
        spend(chars=len(self))
        return str.__str__(self)


class Root(dict[str, Any]):
    """The variables as a template sees them."""


def root_of(variables: Mapping[str, Any]) -> Root:
    """Return the variables as a template sees them; a string that is a JSON array or object becomes one."""
    if isinstance(variables, Root):
        return variables
    return Root((name, _variable(value)) for name, value in variables.items())


def _variable(value: Any) -> Any:
    if type(value) is not str:
        return _wrapped(value)
    spend(steps=len(value) // 1000)
    if value.lstrip(" \t\r\n")[:1] in ("[", "{"):
        try:
            return _wrapped(json.loads(value, parse_constant=_no_json))
        except (ValueError, RecursionError):
            return _wrapped(value)
    return _wrapped(value)


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _wrapped(value: Any) -> Any:
    if value is None:
        return NULL
    if isinstance(value, str):
        return Text(value) if len(value) > _SHORT_CHARS else value
    if isinstance(value, Mapping | list | tuple):
        spend(steps=len(value))
    if isinstance(value, Mapping):
        return Object({str(key): _wrapped(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return Array([_wrapped(item) for item in value])
    if type(value) is float and (not math.isfinite(value) or abs(value) >= _EXPONENT_FROM or 0 < abs(value) < 1e-4):
        return Number(value)
    return value


def json_text(value: Any, *, indent: str = "") -> str:
    """Return what `JSON.stringify(value, null, 2)` returns; `undefined` is the empty string."""
    # The indent of a nested value counts too: it is repeated on each line.
    spend(steps=5, chars=len(indent) + (len(value) if isinstance(value, str) else 8))
    inner = f"{indent}  "
    match value:
        case None:
            return ""
        case Null():
            return "null"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case Array():
            lines = [json_text(item, indent=inner) for item in value.values]
            return _bracketed("[]", lines, inner=inner, indent=indent)
        case Object() | dict():
            lines = [
                f"{json.dumps(key, ensure_ascii=False)}: {json_text(item, indent=inner)}" for key, item in value.items()
            ]
            return _bracketed("{}", lines, inner=inner, indent=indent)
        case float() if not math.isfinite(value):
            return "null"
        case _:
            return text(value)


def _bracketed(brackets: str, lines: list[str], *, inner: str, indent: str) -> str:
    if not lines:
        return brackets
    body = f",\n{inner}".join(lines)
    return f"{brackets[0]}\n{inner}{body}\n{indent}{brackets[1]}"


def text(value: Any) -> str:
    """Return what `String(value)` returns."""
    match value:
        case None:
            return "undefined"
        case Null():
            return "null"
        case bool():
            return "true" if value else "false"
        case dict():
            return "[object Object]"
        case Object() | Array():
            return str(value)
        case float():
            return _number_text(float(value))
        case _:
            return str(value)


def _number_text(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if value == 0:
        return "0"
    if _EXPONENT_BELOW <= abs(value) < _EXPONENT_FROM:
        digits = format(Decimal(repr(value)), "f")
        return digits.removesuffix(".0")
    return re.sub(r"e([+-])0*", r"e\1", repr(value))


def member(value: Any, name: str) -> Any:
    """Return what `value[name]` returns, for members that are the value's own; None if there is none."""
    if isinstance(value, Object | Array | dict):
        return value[name] if name in value else None  # noqa: SIM401 - they have no `get`
    if not isinstance(value, str):
        return None
    if name == "length":
        return len(_code_units(value)) // 2
    return value[int(name)] if name.isdecimal() and int(name) < len(value) else None


def is_nullish(value: Any) -> bool:
    """Return whether the value is null or undefined."""
    return value is None or value is NULL


def is_truthy(value: Any) -> bool:
    """Return what `Boolean(value)` returns: arrays and objects are true, empty ones too."""
    if is_nullish(value):
        return False
    if _is_reference(value):
        return True
    return bool(value) and not (isinstance(value, float) and math.isnan(value))


def equal(left: Any, right: Any) -> bool:
    """Return what `left == right` returns."""
    if is_nullish(left) or is_nullish(right):
        return is_nullish(left) and is_nullish(right)
    if _is_reference(left) and _is_reference(right):
        return left is right
    left, right = _primitive(left), _primitive(right)
    if isinstance(left, str) and isinstance(right, str):
        return left == right
    return _number(left) == _number(right)


def compare(left: Any, right: Any, *, by: Callable[[Any, Any], bool]) -> bool:
    """Return what `left < right`, or another comparison, returns: strings by code units, else numbers."""
    left, right = _primitive(left), _primitive(right)
    if isinstance(left, str) and isinstance(right, str):
        return by(_code_units(left), _code_units(right))
    return by(_number(left), _number(right))


def _is_reference(value: Any) -> bool:
    return isinstance(value, Array | Object | dict)


def _primitive(value: Any) -> Any:
    return text(value) if _is_reference(value) and value is not NULL else value


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if value is NULL:
        return 0.0
    if isinstance(value, str):
        return _number_of_text(value.strip())
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _number_of_text(value: str) -> float:
    if not value:
        return 0.0
    if _RADIX.fullmatch(value):
        return float(int(value, 0))
    return float(value) if _NUMBER.fullmatch(value) else math.nan


def _code_units(value: str) -> bytes:
    return value.encode("utf-16-be", "surrogatepass")
