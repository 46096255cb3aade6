"""What form a job's output must have: an object, an array, or one of an enum's values."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.schema_safety import refuse_bad_schema


class OutputSpec(BaseModel):
    """The form of an output, as in Langdock's `output` parameter (CONTRACT.md 3.3).

    `object` and `array` may carry a JSON Schema (draft 2020-12); for an array it describes
    one item. `enum` needs the list of allowed values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    type: Literal["object", "array", "enum"]
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    enum: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _parts_fit_the_type(self) -> Self:
        if self.type == "enum":
            if not self.enum:
                raise ValueError("output type enum needs `enum`, a list of at least one value")
            if len(set(self.enum)) != len(self.enum):
                raise ValueError("output `enum` lists a value twice")
            if self.json_schema is not None:
                raise ValueError("output type enum takes `enum`, not `schema`")
        else:
            if self.enum is not None:
                raise ValueError(f"output type {self.type} takes `schema`, not `enum`")
            if self.json_schema is not None:
                refuse_bad_schema(self.json_schema, name="schema")
        return self
