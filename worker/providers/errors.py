"""What can go wrong with a provider call.

    ProviderError
    ├── Unreachable       no connection: certainly not sent
    ├── KeyRefused        401, 403
    ├── ModelUnknown      404; 405 and 3xx, which a wrong base URL gets
    ├── QuotaExhausted    402, and a 429 (or other refusal) that says the account has no credit left
    ├── RateLimited       429
    ├── RequestRefused    400, 413, 422, …: sending it again changes nothing
    │   ├── ContextLengthExceeded
    │   ├── ContentFiltered              the prompt, by the provider's content filter
    │   ├── StructuredOutputUnsupported  `response_format`, by this model or with this schema
    │   ├── StreamRefused                `stream` or `stream_options`, it seems
    │   ├── ToolsUnsupported             tools, by this model or service
    │   └── ThreadUnknown                the thread that was to be continued
    ├── ServerFault       408, 409, 425, 5xx
    ├── ReplyLost         sent, and then a time-out or a cut connection: its fate is unknown
    └── ReplyMalformed    a 2xx without a usable completion in it

`worker/flow/decide.py` alone says which of them are tried again. `certainly_not_charged`
tells whether the tokens that were reserved may be given back, `certainly_not_sent` whether
the request may be too, `certainly_not_billed` whether the money may. Which answer becomes which
error: http_errors.py.
"""

from __future__ import annotations

from schemas.quota_told import QuotaTold
from worker.providers.base import Streams

# Somebody between us and the provider gave up waiting for it: it may have answered, and billed, all the same.
_GAVE_UP = frozenset({408, 499, 502, 504, *range(520, 528)})


class ProviderError(Exception):
    """The base of every failed provider call."""

    certainly_not_charged = False
    certainly_not_sent = False

    def __init__(self, message: str, *, http_status: int | None = None, retry_after_s: float | None = None) -> None:
        """Keep the provider's words, its HTTP status and the wait that it asked for, where there are such.

        `thread_ref` is the name of the thread at a hosted assistant, where even its failure
        named one; `told` is what the answer's headers say of the provider's limits.
        """
        self.http_status = http_status
        self.retry_after_s = retry_after_s
        self.thread_ref: str | None = None
        self.told: QuotaTold | None = None
        super().__init__(message)

    @property
    def certainly_not_billed(self) -> bool:
        """Return whether it cost nothing: providers bill completions, not their own refusals and faults."""
        answered = self.http_status is not None and self.http_status >= 400 and self.http_status not in _GAVE_UP
        return self.certainly_not_charged or answered


class Unreachable(ProviderError):  # noqa: N818 - the names say what happened
    """No connection could be made."""

    certainly_not_charged = True
    certainly_not_sent = True


class KeyRefused(ProviderError):  # noqa: N818
    """The key is wrong, missing, or may not do this."""

    certainly_not_charged = True


class ModelUnknown(ProviderError):  # noqa: N818
    """The provider does not have this model, or this path."""

    certainly_not_charged = True


class QuotaExhausted(ProviderError):  # noqa: N818
    """The account has no credit left; waiting a minute does not help."""

    certainly_not_charged = True


class RateLimited(ProviderError):  # noqa: N818
    """Too many requests or tokens for now."""


class RequestRefused(ProviderError):  # noqa: N818
    """The request itself is at fault."""

    certainly_not_charged = True


class ContextLengthExceeded(RequestRefused):
    """The prompt and the completion do not fit the model's context."""


class ContentFiltered(RequestRefused):
    """The provider's content filter held the prompt back."""


class StructuredOutputUnsupported(RequestRefused):
    """The model takes no `response_format`, or not with this schema; the same can be asked for by instruction."""


class StreamRefused(RequestRefused):
    """The server does not stream as it was asked to, or speaks of streams for another reason."""

    def __init__(self, message: str, *, instead: Streams = Streams.NOT_AT_ALL, http_status: int | None = None) -> None:
        """Say how it may be asked `instead`."""
        super().__init__(message, http_status=http_status)
        self.instead = instead


class ToolsUnsupported(RequestRefused):
    """The model or the service takes no tools from its caller."""


class ThreadUnknown(RequestRefused):
    """The service does not have the thread that was to be continued."""


class ServerFault(ProviderError):  # noqa: N818
    """The provider failed."""


class ReplyLost(ProviderError):  # noqa: N818
    """The request was sent and its reply did not arrive: it may have been charged."""


class ReplyMalformed(ProviderError):  # noqa: N818
    """The provider said success and sent no usable completion."""
