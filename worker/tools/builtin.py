"""Tools that assistq itself installs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field


def word_count(text: Annotated[str, Field(description="The text to count in.")]) -> dict[str, int]:
    """Count the words and characters of a text."""
    return {"words": len(text.split()), "characters": len(text)}
