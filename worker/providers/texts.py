"""Texts of services that count in UTF-16: a character may arrive as two halves, or as one."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any


def mended(value: Any) -> Any:
    """Return a JSON value without lone halves of characters, which can be neither stored nor sent on.

    Two halves that were streamed one after the other become their character; one alone
    becomes U+FFFD.
    """
    match value:
        case str():
            return value if _is_whole(value) else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case dict():
            return {mended(key): mended(item) for key, item in value.items()}
        case list() | tuple():
            return [mended(item) for item in value]
        case _:
            return value


class Halves:
    """Texts that come in pieces: a half of a character at the end of one waits for the next."""

    def __init__(self) -> None:
        self._left: dict[Hashable, str] = {}

    def joined(self, of: Hashable, piece: str) -> str:
        """Return what can be told now of the text `of`."""
        text = self._left.pop(of, "") + piece
        if text and "\ud800" <= text[-1] <= "\udbff":
            self._left[of], text = text[-1], text[:-1]
        return str(mended(text))


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
