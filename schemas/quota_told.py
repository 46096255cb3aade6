"""What a provider says of its own limits, in the headers of its answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QuotaTold:
    """Limits, what is left of them, and the seconds until they are whole again; None where nothing sensible was said.

    Counts are at least 0, seconds are 0 to a day. Nobody says the period of a limit: for most
    providers it is a minute, for some (requests of a free account) a day.
    """

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests_s: float | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens_s: float | None = None
