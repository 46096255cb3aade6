"""Langdock's calls that create, update and show a stored assistant (CONTRACT.md row 84)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from producer.gateway.access import Caller, Reads, WritesAssistants
from producer.gateway.dialects.langdock.attached import Attached
from producer.gateway.dialects.langdock.errors import errors
from producer.gateway.dialects.langdock.request import refuse_what_is_lacking, tools_of
from producer.gateway.dialects.langdock.stored import (
    INSTRUCTION,
    INSTRUCTION_TEMPLATE,
    Details,
    Stored,
    StoredAssistants,
)
from producer.gateway.http.strict_json import StrictJsonRoute
from producer.gateway.parts import Parts, parts_of
from producer.gateway.problem import Kind, Problem
from producer.gateway.tools import checked_tools
from schemas.assistant import DESCRIPTION_MAX_CHARS, INSTRUCTIONS_MAX_CHARS, AssistantConfig
from schemas.tool import ToolSpec

router = APIRouter(route_class=StrictJsonRoute, tags=["Langdock"])

DEFAULT_CREATIVITY = 0.3
_NAME_MAX_CHARS = 255
# What null makes of a field; others have no default to go back to.
_CLEARED: dict[str, Any] = {
    "emoji": None,
    "conversationStarters": [],
    "inputFields": [],
    "attachments": [],
    "canvas": False,
    "extendedThinking": False,
    "inputType": "PROMPT",
}


class _Fields(BaseModel):
    """What an assistant is made of; fields that are left out stay as they are, null clears."""

    description: str | None = Field(default=None, max_length=DESCRIPTION_MAX_CHARS)
    emoji: str | None = Field(default=None, max_length=64)
    instruction: str | None = Field(default=None, max_length=INSTRUCTIONS_MAX_CHARS)
    inputType: Literal["PROMPT", "STRUCTURED"] | None = None  # noqa: N815 - Langdock's names
    model: str | None = Field(default=None, min_length=1, max_length=200)
    creativity: float | None = Field(default=None, ge=0, le=1)
    conversationStarters: list[str] | None = Field(default=None, max_length=100)  # noqa: N815
    actions: list[dict[str, Any]] | None = Field(default=None, description="HTTP tools; see `HttpAction`")
    inputFields: list[dict[str, Any]] | None = Field(default=None, max_length=100)  # noqa: N815
    attachments: list[UUID] | None = None
    webSearch: bool | None = None  # noqa: N815
    imageGeneration: bool | None = None  # noqa: N815
    dataAnalyst: bool | None = None  # noqa: N815
    canvas: bool | None = None
    extendedThinking: bool | None = None  # noqa: N815


class CreateRequest(_Fields):
    """A new assistant."""

    name: str = Field(min_length=1, max_length=_NAME_MAX_CHARS)


class UpdateRequest(_Fields):
    """Changes to one."""

    assistantId: str = Field(min_length=1, max_length=512)  # noqa: N815
    name: str | None = Field(default=None, min_length=1, max_length=_NAME_MAX_CHARS)


class AssistantAction(BaseModel):
    """A tool of the assistant, by its name."""

    actionId: str  # noqa: N815
    requiresConfirmation: bool  # noqa: N815


class AssistantDetails(BaseModel):
    """An assistant, as it is now."""

    id: str
    name: str
    description: str | None
    instruction: str | None
    emojiIcon: str | None  # noqa: N815
    model: str
    temperature: float
    conversationStarters: list[str]  # noqa: N815
    inputType: Literal["PROMPT", "STRUCTURED"]  # noqa: N815
    webSearchEnabled: bool  # noqa: N815
    imageGenerationEnabled: bool  # noqa: N815
    codeInterpreterEnabled: bool  # noqa: N815
    canvasEnabled: bool  # noqa: N815
    extendedThinking: bool  # noqa: N815
    actions: list[AssistantAction]
    inputFields: list[dict[str, Any]]  # noqa: N815
    attachments: list[UUID]
    createdAt: datetime  # noqa: N815
    updatedAt: datetime  # noqa: N815


class Shown(BaseModel):
    """The assistant."""

    status: Literal["success"] = "success"
    assistant: AssistantDetails


class Changed(Shown):
    """The assistant, after what was done."""

    message: str


@router.post("/assistant/v1/create", status_code=201, responses=errors(400, 404, 501))
async def create_assistant(body: CreateRequest, request: Request, caller: WritesAssistants) -> Changed:
    """Store a new assistant; the key that made it may use it."""
    parts = parts_of(request)
    stored = await parts.in_thread(_create, body, caller, parts)
    if caller.assistants is not None:
        # Not all of the workspace's are the key's (CONTRACT.md 3.1: what it makes is shared with it).
        await parts.in_thread(parts.keys.share, caller.key_id, [stored.address])
        await parts.checked_keys.forget()
    return Changed(assistant=_shown(stored, parts), message="Assistant created successfully")


@router.patch("/assistant/v1/update", responses=errors(400, 404, 501))
async def update_assistant(body: UpdateRequest, request: Request, caller: WritesAssistants) -> Changed:
    """Store a new version with what is given; `production` points at it."""
    parts = parts_of(request)
    stored = await parts.in_thread(_update, body, caller, parts)
    return Changed(assistant=_shown(stored, parts), message="Assistant updated successfully")


@router.get("/assistant/v1/get", responses=errors(400, 404))
async def get_assistant(
    assistant_id: Annotated[str, Query(alias="assistantId", min_length=1, max_length=512)],
    request: Request,
    caller: Reads,
) -> Shown:
    """Show an assistant."""
    parts = parts_of(request)
    stored = await parts.in_thread(_stored_in(parts).find, caller, assistant_id)
    return Shown(assistant=_shown(stored, parts))


def _create(body: CreateRequest, caller: Caller, parts: Parts) -> Stored:
    tools = _checked(body, caller, parts)

    def config_of(address: str) -> AssistantConfig:
        return AssistantConfig(
            assistant=address,
            description=body.description or "",
            instructions=INSTRUCTION_TEMPLATE,
            variables={INSTRUCTION: body.instruction or ""},
            model=body.model,
            temperature=DEFAULT_CREATIVITY if body.creativity is None else body.creativity,
            tools=tools or None,
        )

    return _stored_in(parts).create(caller, config_of, Details.model_validate({**_details(body), "name": body.name}))


def _update(body: UpdateRequest, caller: Caller, parts: Parts) -> Stored:
    stored = _stored_in(parts)
    found = stored.find(caller, body.assistantId)
    given = body.model_fields_set
    if "name" in given and body.name is None:
        raise Problem(Kind.BAD_REQUEST, "name: an assistant needs one; leave it out to keep it", param="name")
    tools = _checked(body, caller, parts, found)
    changes: dict[str, Any] = {}
    if "description" in given:
        changes["description"] = body.description or ""
    if "model" in given:
        changes["model"] = body.model
    if "creativity" in given:
        changes["temperature"] = DEFAULT_CREATIVITY if body.creativity is None else body.creativity
    if "actions" in given:
        changes["tools"] = tools or None

    def change(config: AssistantConfig) -> AssistantConfig:
        updated = dict(changes)
        if "instruction" in given:
            updated["instructions"] = INSTRUCTION_TEMPLATE
            updated["variables"] = {**config.variables, INSTRUCTION: body.instruction or ""}
        return config.model_copy(update=updated)

    name = {"name": body.name} if "name" in given else {}
    return stored.update(found, change, {**_details(body), **name})


def _checked(body: _Fields, caller: Caller, parts: Parts, found: Stored | None = None) -> tuple[ToolSpec, ...]:
    """Return the tools that are asked for; those that the assistant has already are named by `actionId`."""
    known, attachments = ((), []) if found is None else (found.config.tools or (), found.details.attachments)
    refuse_what_is_lacking(web_search=body.webSearch, image_generation=body.imageGeneration)
    # 404 for one that is not there, before anything is stored.
    Attached(parts.files, caller, of_assistant=attachments).parts(body.attachments or ())
    has = {tool.name: tool for tool in known}
    actions = body.actions or []
    kept = [has[str(action["actionId"])] for action in actions if str(action.get("actionId")) in has]
    new = [action for action in actions if str(action.get("actionId")) not in has]
    made = checked_tools(tools_of(new, where="actions"))
    return (*kept, *made)


def _details(body: _Fields) -> dict[str, Any]:
    given = body.model_dump(include=body.model_fields_set & _CLEARED.keys())
    return {name: _CLEARED[name] if value is None else value for name, value in given.items()}


def _shown(stored: Stored, parts: Parts) -> AssistantDetails:
    config, details = stored.config, stored.details
    return AssistantDetails(
        id=stored.id,
        name=details.name,
        description=config.description or None,
        instruction=stored.instruction or None,
        emojiIcon=details.emoji,
        model=config.model or parts.settings.model or "",
        temperature=DEFAULT_CREATIVITY if config.temperature is None else config.temperature,
        conversationStarters=details.conversationStarters,
        inputType=details.inputType,
        webSearchEnabled=False,
        imageGenerationEnabled=False,
        codeInterpreterEnabled=False,
        canvasEnabled=details.canvas,
        extendedThinking=details.extendedThinking,
        actions=[AssistantAction(actionId=tool.name, requiresConfirmation=False) for tool in config.tools or ()],
        inputFields=details.inputFields,
        attachments=details.attachments,
        createdAt=stored.created_at,
        updatedAt=stored.updated_at,
    )


def _stored_in(parts: Parts) -> StoredAssistants:
    return StoredAssistants(parts.engine, parts.assistants)
