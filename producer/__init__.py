"""Makes jobs and reads results; never runs them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from producer.client import Producer
from producer.handles import BatchHandle, JobHandle

__all__ = ["BatchHandle", "JobHandle", "Producer"]


def __getattr__(name: str) -> Any:
    """Load the client when it is first named: a child process of `producer.embedded` needs none of it."""
    if name in __all__:
        return getattr(import_module("producer.client"), name)
    raise AttributeError(f"module 'producer' has no attribute {name!r}")
