"""Our own API: stored assistants, their versions and environments."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from producer.assistants import Applied
from producer.gateway.access import Caller, Reads, WritesAssistants, refuse_unshared
from producer.gateway.dialects.own.assistant_records import AssistantRecords, ListedAssistant
from producer.gateway.dialects.own.job_requests import AssistantDefinition, unknown_assistant
from producer.gateway.dialects.own.pages import Cursor, Limit, Page, Place, page_of, place_of
from producer.gateway.dialects.own.problem_details import PROBLEMS
from producer.gateway.hosted import refuse_hosted
from producer.gateway.http.strict_json import StrictJsonRoute
from producer.gateway.parts import parts_of
from schemas.assistant import AssistantConfig
from schemas.errors import InputError

router = APIRouter(route_class=StrictJsonRoute, tags=["Assistants"], responses=PROBLEMS)

_SLUG = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
_VERSION_MAX = 2**31 - 1
Slug = Annotated[str, Path(pattern=_SLUG)]
Version = Annotated[int, Field(ge=1, le=_VERSION_MAX, strict=True)]


class AssistantSummary(BaseModel):
    """An assistant: its newest version, and the version that each environment points at."""

    assistant: str
    newest_version: int
    changed_at: datetime = Field(description="when the newest version was made")
    environments: dict[str, int]


class AssistantView(BaseModel):
    """One version of an assistant."""

    assistant: str
    version: int
    environments: dict[str, int]
    config: dict[str, Any]


class AppliedView(BaseModel):
    """What applying a configuration, or moving an environment, came to."""

    assistant: str
    environment: str
    version: int
    new_version: bool
    moved_from: int | None = Field(description="the version that the environment pointed at before")


class Deployment(BaseModel):
    """Which version an environment is to point at."""

    model_config = ConfigDict(extra="forbid")

    version: Version


@router.get("/v1/assistants", response_model=Page[AssistantSummary])
async def list_assistants(
    request: Request, caller: Reads, limit: Limit = 20, cursor: Cursor = None
) -> Page[AssistantSummary]:
    """List the assistants that the key may use, that with the newest version first."""
    parts = parts_of(request)
    records = AssistantRecords(parts.engine)
    found = await parts.in_thread(records.latest, caller, place=place_of(cursor), limit=limit + 1)
    return page_of(found, limit=limit, show=_summary, place=lambda each: Place(each.changed_at, each.address))


@router.get("/v1/assistants/{project}/{assistant}", response_model=AssistantView)
async def get_assistant(
    project: Slug,
    assistant: Slug,
    request: Request,
    caller: Reads,
    environment: Annotated[str, Query(pattern=_SLUG)] = "production",
    version: Annotated[int | None, Query(ge=1, le=_VERSION_MAX)] = None,
) -> AssistantView:
    """Show the version that an environment points at, or the one that is named."""
    parts = parts_of(request)
    address = _address(project, assistant, caller)
    try:
        config, found = await parts.in_thread(
            parts.assistants.config, address, environment=environment, version=version
        )
    except InputError as exc:
        raise unknown_assistant(address, exc.what) from exc
    return AssistantView(
        assistant=address,
        version=found,
        environments=await parts.in_thread(AssistantRecords(parts.engine).environments, address),
        config=_shown(config),
    )


@router.put("/v1/assistants/{project}/{assistant}", response_model=AppliedView)
async def apply_assistant(
    project: Slug, assistant: Slug, body: AssistantDefinition, request: Request, caller: WritesAssistants
) -> AppliedView:
    """Store a configuration as a version, unless an equal one exists, and point its `environment` there.

    Applying the same again changes nothing. Of tools it takes `function`, and `http` without a secret: what runs
    code on a worker, or reaches its secrets, comes from a file; so does what names another service's assistant.
    """
    parts = parts_of(request)
    config = body.to_config(_address(project, assistant, caller))
    await parts.in_thread(refuse_hosted, parts.engine, config)
    applied: Applied = await parts.in_thread(parts.assistants.apply, config)
    return AppliedView(
        assistant=applied.address,
        environment=applied.environment,
        version=applied.version,
        new_version=applied.new_version,
        moved_from=applied.moved_from,
    )


@router.put("/v1/assistants/{project}/{assistant}/environments/{environment}", response_model=AppliedView)
async def deploy_assistant(
    project: Slug, assistant: Slug, environment: Slug, body: Deployment, request: Request, caller: WritesAssistants
) -> AppliedView:
    """Point an environment at a version that exists."""
    parts = parts_of(request)
    address = _address(project, assistant, caller)
    try:
        before = await parts.in_thread(parts.assistants.deploy, address, environment=environment, version=body.version)
    except InputError as exc:
        raise unknown_assistant(address, exc.what) from exc
    return AppliedView(
        assistant=address, environment=environment, version=body.version, new_version=False, moved_from=before
    )


def _address(project: str, assistant: str, caller: Caller) -> str:
    address = f"{caller.workspace}/{project}/{assistant}"
    refuse_unshared(address, caller)
    return address


def _summary(stored: ListedAssistant) -> AssistantSummary:
    return AssistantSummary(
        assistant=stored.address,
        newest_version=stored.newest,
        changed_at=stored.changed_at,
        environments=stored.environments,
    )


def _shown(config: AssistantConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"assistant"})
