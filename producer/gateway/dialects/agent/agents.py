"""The agents of the agent dialect, to read: what a client may look up before it asks one."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from producer.gateway.access import Reads, Runs
from producer.gateway.dialects.agent.completions import BASE, agent_of
from producer.gateway.dialects.agent.errors import AGENT_ERRORS
from producer.gateway.dialects.openai.models import Model, ModelList
from producer.gateway.http.strict_json import StrictJsonRoute
from producer.gateway.parts import parts_of
from producer.gateway.stored_assistant import PRODUCTION, StoredAssistant, shared_assistants
from schemas.settings import Settings

router = APIRouter(route_class=StrictJsonRoute, prefix=BASE, tags=["Agent"], responses=AGENT_ERRORS)


class Agent(BaseModel):
    """An agent as its callers may see it; `session_max_length` is in tokens, None for no limit."""

    id: str
    object: Literal["agent"] = "agent"
    created_at: int
    name: str
    description: str
    model: str
    session_max_length: int | None
    session_summarization_strategy: Literal["delete_oldest"] = "delete_oldest"
    status: Literal["READY"] = "READY"


class AgentList(BaseModel):
    """A page of agents, by id."""

    object: Literal["list"] = "list"
    data: list[Agent]
    first_id: str | None
    last_id: str | None
    has_more: bool


@router.get("/assistants")
@router.get("/agents")
async def list_agents(
    request: Request,
    caller: Reads,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    order: Literal["asc", "desc"] = "asc",
) -> AgentList:
    """List the agents that are shared with the key: each environment of each assistant."""
    parts = parts_of(request)
    found = await shared_assistants(parts, caller)
    ordered = found if order == "asc" else found[::-1]
    page = [_agent(each, parts.settings) for each in ordered[offset : offset + limit]]
    return AgentList(
        data=page,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=len(found) > offset + limit,
    )


@router.get("/assistants/{agent_id:path}/models")
@router.get("/agents/{agent_id:path}/models")
async def list_agent_models(agent_id: str, request: Request, caller: Runs) -> ModelList:
    """List the agent's model, as a client asks for it whose base URL ends in the agent's id."""
    parts = parts_of(request)
    agent = await agent_of(parts, caller, agent_id)
    model = agent.model(parts.settings)
    created = int(agent.created_at.timestamp())
    return ModelList(data=[] if model is None else [Model(id=model, created=created, owned_by="system")])


@router.get("/assistants/{agent_id:path}")
@router.get("/agents/{agent_id:path}")
async def retrieve_agent(agent_id: str, request: Request, caller: Reads) -> Agent:
    """Return one agent."""
    parts = parts_of(request)
    return _agent(await agent_of(parts, caller, agent_id), parts.settings)


def _agent(assistant: StoredAssistant, settings: Settings) -> Agent:
    _, project, name = assistant.address.split("/")
    environment = assistant.config.environment
    return Agent(
        id=f"{project}:{name}" + ("" if environment == PRODUCTION else f"@{environment}"),
        created_at=int(assistant.created_at.timestamp()),
        name=name,
        description=assistant.config.description,
        model=assistant.model(settings) or "",
        session_max_length=assistant.config.history_tokens,
    )
