"""What a provider says of its quota, in the headers of a reply."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QuotaTold:
    """Limits, what remains of them, and the seconds until they are whole again; None is not told."""

    limit_requests: float | int | None = None
    remaining_requests: float | int | None = None
    reset_requests_s: float | int | None = None
    limit_tokens: float | int | None = None
    remaining_tokens: float | int | None = None
    reset_tokens_s: float | int | None = None
