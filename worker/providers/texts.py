"""Texts of services that count in UTF-16: a character may arrive as two halves, or as one."""

from __future__ import annotations

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


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
