"""The models that a caller may name: the installation's default, and those of the assistants that it may use."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from producer.gateway.stored_assistant import StoredAssistant

# Nobody knows since when the default model is there.
_LONG_AGO = datetime(2023, 1, 1, tzinfo=UTC)


def models_of(assistants: Iterable[StoredAssistant], *, default: str | None) -> dict[str, datetime]:
    """Return the models by name, the default first, with the time since when each is known."""
    found: dict[str, datetime] = {}
    for assistant in assistants:
        model = assistant.config.model
        # A model that a hosting service knows is of no use without the assistant there.
        if model is not None and assistant.config.provider == "openai":
            found[model] = min(assistant.created_at, found.get(model, assistant.created_at))
    first = {} if default is None else {default: _LONG_AGO}
    return first | {name: found[name] for name in sorted(found) if name != default}
