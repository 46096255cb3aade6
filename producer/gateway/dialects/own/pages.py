"""Lists of our own API: newest first, a page at a time, behind an opaque cursor.

A cursor names the last thing that its page showed, by time and id: what is added or removed meanwhile moves
no page, and nothing is shown twice.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, Field
from sqlalchemy import ColumnElement, and_, or_
from sqlmodel import col

from producer.gateway.problem import Kind, Problem

Item = TypeVar("Item")
Found = TypeVar("Found")

LIMIT_MAX = 100

Limit = Annotated[int, Query(ge=1, le=LIMIT_MAX, description="How many at most")]
Cursor = Annotated[
    str | None, Query(max_length=4096, description="`next_cursor` of the page before; the first page without it")
]


class Page(BaseModel, Generic[Item]):
    """Some of a list; `next_cursor` asks for what comes after, and is null on the last page."""

    data: list[Item]
    next_cursor: str | None = Field(description="null on the last page")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page ends: the time and the id of the last thing on it."""

    at: datetime
    id: str

    @property
    def number(self) -> int:
        """Return the id as a position; Problem 400 if the cursor is another list's."""
        if not self.id.isdecimal() or len(self.id) > 9:
            raise _invalid()
        return int(self.id)


def place_of(cursor: str | None) -> Place | None:
    """Return what the cursor names, None for the first page; Problem 400 for what we did not make."""
    if cursor is None:
        return None
    try:
        at, last_id = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
        told = datetime.fromisoformat(at)
        # A time at the end of all times is out of them in another zone.
        in_utc = told.astimezone(UTC)
    except (ValueError, TypeError, OverflowError, RecursionError) as exc:
        raise _invalid() from exc
    if told.tzinfo is None or not isinstance(last_id, str) or not last_id.isprintable():
        raise _invalid()
    return Place(at=in_utc, id=last_id)


def after(place: Place | None, at: Any, item_id: Any) -> ColumnElement[bool]:
    """Return the condition that a row comes after the place in a list by these columns, newest first."""
    if place is None:
        return col(item_id).is_not(None)
    return or_(col(at) < place.at, and_(col(at) == place.at, col(item_id) < place.id))


def page_of(
    found: Sequence[Found], *, limit: int, show: Callable[[Found], Item], place: Callable[[Found], Place]
) -> Page[Item]:
    """Return the page of the first `limit` of these; `found` has one more if there is a page after it."""
    shown = found[:limit]
    more = len(found) > limit
    return Page(data=[show(each) for each in shown], next_cursor=_cursor(place(shown[-1])) if more else None)


def _invalid() -> Problem:
    return Problem(
        Kind.BAD_REQUEST,
        "the cursor is none of ours; send `next_cursor` of a page as it is, or no cursor",
        code="invalid_cursor",
        param="cursor",
    )


def _cursor(place: Place) -> str:
    return base64.urlsafe_b64encode(json.dumps([place.at.isoformat(), place.id]).encode()).decode()
