"""Requests whose values can be sent on: JSON escapes can say texts that are none, and Python reads NaN."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, model_validator

from schemas.schema_safety import written


class Sendable(BaseModel):
    """A body all of whose values, also those that no field describes further, can be written as JSON again."""

    @model_validator(mode="before")
    @classmethod
    def _can_be_written_as_json(cls, value: Any) -> Any:
        written(value, name="the body")
        return value
