"""Two who update one of Langdock's stored assistants at the same time lose nothing of each other's."""

from __future__ import annotations

from sqlalchemy import Engine

from producer.assistants import Assistants
from producer.gateway.access import Caller
from producer.gateway.dialects.langdock.stored import Details, StoredAssistants
from schemas.assistant import AssistantConfig


def test_a_change_is_made_again_to_what_was_stored_meanwhile(engine: Engine) -> None:
    stored = StoredAssistants(engine, Assistants(engine))
    caller = Caller(key_id="k", workspace="demo", scopes=frozenset(), assistants=None, rpm=None)
    made = stored.create(
        caller, lambda address: AssistantConfig(assistant=address, instructions="Help."), Details(name="One")
    )
    interrupted: list[bool] = []

    def describe(config: AssistantConfig) -> AssistantConfig:
        if not interrupted:
            interrupted.append(True)
            stored.update(made, lambda config: config.model_copy(update={"temperature": 0.9}), {"emoji": "x"})
        return config.model_copy(update={"description": "Helps"})

    changed = stored.update(made, describe, {"name": "Two"})
    assert (changed.config.description, changed.config.temperature) == ("Helps", 0.9)
    assert (changed.details.name, changed.details.emoji) == ("Two", "x")
    assert stored.find(caller, made.id) == stored.find(caller, made.address) == changed
