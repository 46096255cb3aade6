"""From what a schema says against a request, or a part of it, to faults that name the request's own fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from producer.gateway.problem import Fault, Kind, Problem

# How many faults an answer tells, and how many are looked at: a body of some MB can have a million.
FAULTS_TOLD = 100
_FAULTS_READ = 1000


def faults_of(error: RequestValidationError) -> list[Fault]:
    """Return what is wrong, one fault for each place, and at most FAULTS_TOLD.

    Where a field may be one of several things, it is told what is wrong with each: those that are told of the field
    as a whole are left out if another fits better, and put together if none does.
    """
    found: dict[tuple[str | int, ...], Fault] = {}
    for each in error.errors()[:_FAULTS_READ]:
        if each["type"] == "json_invalid":
            return [Fault(where=("body",), what=str(each["ctx"]["error"]), type="json_invalid")]
        where = _place(each["loc"], error.body, missing=each["type"] == "missing")
        what = each["msg"].removeprefix("Value error, ")
        before = found.get(where)
        if before is None:
            found[where] = Fault(where=where, what=what, type=each["type"])
        elif what not in before.what:
            found[where] = Fault(where=where, what=f"{before.what}; or: {what}", type=before.type)
    around = {where[:end] for where in found for end in range(2, len(where))}
    return [fault for where, fault in found.items() if where not in around][:FAULTS_TOLD]


def faults_in(error: ValidationError, *where: str | int) -> list[Fault]:
    """Return what is wrong with something of ours that was made of the request, of what stands `where` in its body.

    At most FAULTS_TOLD.
    """
    return [
        Fault(where=("body", *where, *each["loc"]), what=each["msg"].removeprefix("Value error, "), type=each["type"])
        for each in error.errors(include_url=False, include_context=False, include_input=False)[:FAULTS_TOLD]
    ]


def problem_of(faults: Sequence[Fault], *, kind: Kind = Kind.BAD_REQUEST) -> Problem:
    """Return the problem of a request that has these faults: its words are the first one's."""
    first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    message = f"{first.place}: {first.what}{more}" if first.place else f"{first.what}{more}"
    return Problem(kind, message, code="invalid_request", param=first.place or None, faults=faults)


def _place(loc: Sequence[str | int], body: Any, *, missing: bool) -> tuple[str | int, ...]:
    """Return the place without what pydantic puts into it: the names of a union's members."""
    if loc[0] != "body":
        return tuple(loc)
    where: list[str | int] = ["body"]
    value = body
    for at, part in enumerate(loc[1:], 1):
        if (isinstance(value, dict) and part in value) or (
            isinstance(value, list) and isinstance(part, int) and part < len(value)
        ):
            value = value[part]  # type: ignore[index]
        elif not (missing and at == len(loc) - 1):
            continue
        where.append(part)
    return tuple(where)
