"""Logs of every process: one JSON line an event on stderr, and no secret in any of them."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import structlog
from pydantic import SecretStr
from structlog.types import EventDict, Processor

from schemas.settings import Settings

MASK = "[secret]"
MAX_FIELD_CHARS = 8_000
_NAMES_KEPT = 512
# A known secret shorter than this is masked only where it stands alone, or it would riddle
# every word that contains it; below the second bound not at all.
_PLAIN_MIN_CHARS = 8
_SECRET_MIN_CHARS = 3
# Their INFO and DEBUG lines carry URLs, headers and statements.
_QUIET_LOGGERS = ("httpx", "httpcore", "httpx2", "httpcore2", "mcp", "sqlalchemy", "asyncio")

_SENSITIVE_NAME = r"(?:proxy-)?authorization|x-api-key|api[-_]?key|access[-_]token|password|passwd|secret"
_SENSITIVE_KEY = re.compile(rf"^(?:.*[-_])?(?:{_SENSITIVE_NAME})$", re.IGNORECASE)
# Each with what is kept of a match. Bounded repeats keep a hostile text from costing more
# than linear time.
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]{0,20}://)[^\s/?#'\"<>]{1,500}@"), rf"\1{MASK}@"),
    (
        # `Authorization: Basic …`, `'api_key': '…'`, `(b'authorization', b'Bearer …')`, `password=…`
        re.compile(
            rf"\b((?:{_SENSITIVE_NAME})['\"]?\s{{0,5}}[:=,]\s{{0,5}}(?:b?['\"])?+)(?!{re.escape(MASK)})"
            r"(?:(?:bearer|basic|digest|token)\s{1,5})?[^\s'\",;&)}\]]{1,4000}",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    (re.compile(rf"\b(bearer\s{{1,5}})(?!{re.escape(MASK)})[^\s'\",;)}}\]]{{1,4000}}", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"([?&](?:key|token|sig|signature|auth)=)[^\s&'\"#]{1,4000}", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{3,4000}"), MASK),
    (re.compile(r"whsec_[A-Za-z0-9+/=_-]{1,4000}"), MASK),
    # A key to the gateway, of which the id may be told (producer/gateway/keys.py).
    (re.compile(r"\b(aq_[0-9a-f]{16}_)[A-Za-z0-9_-]{1,4000}"), rf"\1{MASK}"),
)
# Each of them needs one of these: most texts hold none, and are spared the rest.
_HINT_OF_A_SECRET = re.compile(
    rf"://|{_SENSITIVE_NAME}|bearer|[?&](?:key|token|sig|auth)|sk-|whsec_|aq_", re.IGNORECASE
)


def configure(settings: Settings, *, stream: TextIO | None = None) -> None:
    """Send all logging of this process, structlog's and stdlib's, to `stream` (stderr) as JSON lines.

    Replaces the handlers of the root logger, also those of Dramatiq's command line, whose
    children have a pipe to the master as `sys.stderr`. Call it again after a fork.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                SecretMask.of(settings),
                _in_order,
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.log_level)
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    # A record that cannot be formatted would be printed as it is, unmasked.
    logging.raiseExceptions = False
    _spare_what_no_line_shows()
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def _spare_what_no_line_shows() -> None:
    """Let records not look for their caller, thread and process, as the optimizations of logging's HOWTO say.

    The walk up to the caller is long where tasks await each other.
    """
    logging._srcfile = None  # noqa: SLF001 - documented for this
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


class SecretMask:
    """A structlog processor that masks secrets in every string, at any depth, exception text included."""

    def __init__(self, *known: str) -> None:
        """Mask the known values, in the spellings in which they turn up, besides what looks like a secret."""
        spellings = {spelling for secret in known for spelling in _spellings(secret)}
        # Longest first: a value may begin with another.
        patterns = [_pattern_of(spelling) for spelling in sorted(spellings, key=len, reverse=True)]
        self._known = re.compile("|".join(patterns)) if patterns else None
        # The names of fields, which come again and again.
        self._name = lru_cache(maxsize=_NAMES_KEPT)(self.text)

    @classmethod
    def of(cls, settings: Settings) -> SecretMask:
        """Return the mask for all secret fields of the settings, and the passwords in their URLs."""
        values = (getattr(settings, name) for name in type(settings).model_fields)
        secrets = [value.get_secret_value() for value in values if isinstance(value, SecretStr)]
        secrets += settings.tool_secrets().values()
        urls = [*secrets, settings.provider_base_url or ""]
        return cls(*secrets, *(password for url in urls for password in _passwords_in(url)))

    def __call__(self, _logger: Any, _method: str, fields: EventDict) -> EventDict:
        """Return the fields, masked and cut to MAX_FIELD_CHARS characters each."""
        return {self._name(key): self._value(key, value) for key, value in fields.items()}

    def text(self, text: str) -> str:
        """Return the text without secrets, cut to MAX_FIELD_CHARS characters."""
        cut = text[: 4 * MAX_FIELD_CHARS]
        if self._known is not None:
            cut = self._known.sub(MASK, cut)
        if _HINT_OF_A_SECRET.search(cut):
            for pattern, kept in _PATTERNS:
                cut = pattern.sub(kept, cut)
        return cut if len(text) <= MAX_FIELD_CHARS else cut[:MAX_FIELD_CHARS] + "…"

    def _value(self, key: str, value: Any) -> Any:
        if _SENSITIVE_KEY.match(key) and value is not None:
            return MASK
        match value:
            case None | bool() | int() | float():
                return value
            case str():
                return self.text(value)
            case Mapping():
                return {self.text(str(name)): self._value(str(name), inner) for name, inner in value.items()}
            case list() | tuple() | set() | frozenset():
                return [self._value("", inner) for inner in value]
            case _:  # here, because the renderer would write its repr unmasked
                return self.text(repr(value))


def _spellings(secret: str) -> Iterator[str]:
    if len(secret) < _SECRET_MIN_CHARS:
        return
    yield from (secret, quote(secret, safe=""), quote(secret), unquote(secret))
    yield from (repr(secret)[1:-1], json.dumps(secret)[1:-1])


def _pattern_of(spelling: str) -> str:
    escaped = re.escape(spelling)
    return escaped if len(spelling) >= _PLAIN_MIN_CHARS else rf"(?<![A-Za-z0-9]){escaped}(?![A-Za-z0-9])"


def _passwords_in(url: str) -> Iterator[str]:
    if "://" not in url:
        return
    try:
        parts = urlsplit(url)
    except ValueError:  # the whole value is masked anyway
        return
    if parts.password:
        yield from (parts.password, unquote(parts.password))
    yield from (value for name, value in parse_qsl(parts.query) if _SENSITIVE_KEY.match(name))


def _in_order(_logger: Any, _method: str, fields: EventDict) -> EventDict:
    first = {name: fields.pop(name, None) for name in ("ts", "level", "event")}
    return {**first, **fields}


def _log_uncaught(kind: type[BaseException], exc: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, exc, trace)
        return
    logging.getLogger("assistq").critical("uncaught exception", exc_info=(kind, exc, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is None or issubclass(args.exc_type, SystemExit):
        return
    logging.getLogger("assistq").critical(
        "uncaught exception in a thread", exc_info=(args.exc_type, args.exc_value, args.exc_traceback)
    )
