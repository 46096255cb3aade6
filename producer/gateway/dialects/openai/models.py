"""OpenAI's list of models: what the caller's assistants name, the default, and the assistants' own addresses.

A key that may not run inline (access.py) can name addresses alone, and sees these.
"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from producer.gateway.access import Caller, Runs
from producer.gateway.dialects.openai.chat import unknown_model
from producer.gateway.dialects.openai.errors import OPENAI_ERRORS
from producer.gateway.http.strict_json import StrictJsonRoute
from producer.gateway.models import models_of
from producer.gateway.parts import Parts, parts_of
from producer.gateway.stored_assistant import PRODUCTION, StoredAssistant, shared_assistants

router = APIRouter(route_class=StrictJsonRoute, tags=["OpenAI"], responses=OPENAI_ERRORS)


class Model(BaseModel):
    """What a chat completion can name as its `model`.

    `created` is unix seconds: of an assistant, when its version was stored. The workspace owns its assistants, `system`
    the models that they name.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All of them, models first."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("/v1/models")
async def list_models(request: Request, caller: Runs) -> ModelList:
    """List what the key's `model` may be; a provider may know more models, which can be named too."""
    return ModelList(data=await _models(parts_of(request), caller))


@router.get("/v1/models/{model:path}")
async def retrieve_model(model: str, request: Request, caller: Runs) -> Model:
    """Return one of the list."""
    found = next((each for each in await _models(parts_of(request), caller) if each.id == model), None)
    if found is None:
        raise unknown_model(model)
    return found


async def _models(parts: Parts, caller: Caller) -> list[Model]:
    """Return the models, and one entry for each environment of each assistant: production's is the bare address."""
    assistants = await shared_assistants(parts, caller)
    # Who may not run inline has no use for a model without an assistant.
    models = models_of(assistants, default=parts.settings.model) if caller.may_run_inline else {}
    return [
        *(Model(id=name, created=int(since.timestamp()), owned_by="system") for name, since in models.items()),
        *(_of_assistant(each, caller) for each in assistants),
    ]


def _of_assistant(assistant: StoredAssistant, caller: Caller) -> Model:
    environment = assistant.config.environment
    address = assistant.address if environment == PRODUCTION else f"{assistant.address}@{environment}"
    return Model(id=address, created=int(assistant.created_at.timestamp()), owned_by=caller.workspace)
