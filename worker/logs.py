"""Logs the core's events; how lines look, and what is masked in them, say schemas.logs."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
import time
from functools import cache
from typing import Any, assert_never

import structlog

from schemas.lane import Lane
from worker.events import (
    BatchEnded,
    Event,
    JobCrashed,
    JobEnded,
    JobSnoozed,
    JobsRecovered,
    JobStarted,
    LimiterWaited,
    OldRowsPruned,
    ProviderCalled,
    ServiceFault,
    StaleWorkRefused,
    ToolCalled,
    ToolCrashed,
    WebhookAttempted,
)

FAULTS_EVERY_S = 5.0


class LogSubscriber:
    """Logs each event of the core under its name in snake case, with its fields.

    A service that is away is met by every job and loop: of the faults of one part a line is logged
    every FAULTS_EVERY_S, with how many were passed over.
    """

    def __init__(self) -> None:
        """Take the logger `assistq`."""
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("assistq")
        # By part: when a line was logged, and how many faults were not since.
        self._faults: dict[str, tuple[float, int]] = {}

    def on_event(self, event: Event) -> None:
        """Log the event."""
        if isinstance(event, ServiceFault):
            self._on_fault(event)
            return
        self._log.log(_level_of(event), _name_of(type(event).__name__), **_fields_of(event))

    def _on_fault(self, fault: ServiceFault) -> None:
        now_s = time.monotonic()
        logged_s, passed_over = self._faults.get(fault.part, (-math.inf, 0))
        if now_s - logged_s < FAULTS_EVERY_S:
            self._faults[fault.part] = (logged_s, passed_over + 1)
            return
        self._faults[fault.part] = (now_s, 0)
        more = {"passed_over": passed_over} if passed_over else {}
        self._log.log(_level_of(fault), _name_of(type(fault).__name__), **_fields_of(fault), **more)


def _level_of(event: Event) -> int:
    match event:
        case LimiterWaited():
            return logging.DEBUG
        case JobStarted() | JobSnoozed() | JobEnded() | BatchEnded() | OldRowsPruned():
            return logging.INFO
        case ProviderCalled():
            return logging.INFO if event.outcome == "ok" else logging.WARNING
        case ToolCalled():
            return logging.WARNING if event.failed else logging.INFO
        case WebhookAttempted():
            return logging.INFO if event.outcome == "delivered" else logging.WARNING
        case JobsRecovered() | StaleWorkRefused() | ServiceFault():
            return logging.WARNING
        case JobCrashed() | ToolCrashed():
            return logging.ERROR
        case _:
            assert_never(event)


@cache
def _name_of(kind: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower()


def _fields_of(event: Event) -> dict[str, Any]:
    fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
    if isinstance(event, JobCrashed | ToolCrashed):
        fields["exc_info"] = event.error  # becomes `exception`, with the traceback
    return {name: value.key if isinstance(value, Lane) else value for name, value in fields.items()}
