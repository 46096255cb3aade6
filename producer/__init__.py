"""Makes jobs and reads results; never runs them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from producer.client import Producer
    from producer.handles import BatchHandle, JobHandle

__all__ = ["BatchHandle", "JobHandle", "Producer"]

_MODULES = {"BatchHandle": "producer.handles", "JobHandle": "producer.handles", "Producer": "producer.client"}


def __getattr__(name: str) -> Any:
    """Load a name when it is first used.

    `assistq` has to be ready for Ctrl-C before anything that takes time is loaded, and a child process of
    `producer.embedded` needs none of it.
    """
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'producer' has no attribute {name!r}")
