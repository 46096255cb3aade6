"""Langtail's Invoke Assistant, its configuration and its deployments (CONTRACT.md 1, rows 1-34 and 42).

Its paths begin with a workspace's name, so this router comes last; names that other dialects begin with are none
of a workspace here.

A key is project-scoped when it is shared assistants of one project only: `/project-prompt/{slug}` means these.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.convertors import Convertor, register_url_convertor

from producer.gateway.access import Caller, Reads, Runs
from producer.gateway.bodies import DEPLOYMENT_NOT_FOUND, Dialect
from producer.gateway.chat.answer import ChatCall, answered, begun
from producer.gateway.chat.completion import ChatCompletion
from producer.gateway.chat.request import callers_tools
from producer.gateway.continued import thread_of_others
from producer.gateway.dialects.langtail.config import (
    Deployments,
    PlaygroundState,
    deployment,
    playground_state,
)
from producer.gateway.dialects.langtail.request import InvokeRequest, asked_for, job_of
from producer.gateway.http.strict_json import StrictJsonRoute
from producer.gateway.idempotency import IdempotencyKey
from producer.gateway.parts import Parts, parts_of
from producer.gateway.problem import Kind, Problem
from producer.gateway.stored_assistant import read_version, version_in
from producer.gateway.threads import Threads, no_thread
from schemas.assistant import INLINE_PATH, AssistantConfig
from schemas.outcome import Code

RESERVED = (
    "v1",
    "v2",
    "api",
    "assistant",
    "attachment",
    "project-prompt",
    "list-deployments",
    "healthz",
    "readyz",
    "metrics",
    "openapi.json",
)
THREAD_HEADER = "x-langtail-thread-id"


class _Workspace(Convertor[str]):
    regex = rf"(?!(?:{'|'.join(map(re.escape, RESERVED))})(?:/|$))[^/]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("langtail_workspace", _Workspace())


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The answer to a request that failed; an unknown deployment is a plain text."""

    error: ErrorDetail | str


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error answers of a route, for the OpenAPI document."""
    return {status: {"model": ErrorBody} for status in (400, 401, 403, 408, 413, 429, 500, 503, *statuses)}


router = APIRouter(route_class=StrictJsonRoute, tags=["Langtail"])
_PATH = "/{workspace:langtail_workspace}/{project}/{assistant}/{environment}"
_PROJECT_PATH = "/project-prompt/{slug}/{environment}"
_Version = Annotated[str | None, Query(alias="v", description="Pins a version, whatever the environment.")]
_INVOKE: dict[str, Any] = {
    "response_model": ChatCompletion,
    "responses": {
        200: {"content": {"text/event-stream": {}}, "headers": {THREAD_HEADER: {"schema": {"type": "string"}}}},
        **errors(402, 404, 409, 422, 502, 504),
    },
}


@dataclass(frozen=True, slots=True)
class _Invocation:
    """What both paths of an invocation take."""

    request: Request
    caller: Runs
    body: Annotated[InvokeRequest | None, Body()] = None
    version: _Version = None
    do_not_record: Annotated[str | None, Header(alias="x-langtail-do-not-record")] = None
    key: IdempotencyKey = None


@router.post(_PROJECT_PATH, **_INVOKE)
async def invoke_of_project(slug: str, environment: str, invocation: Annotated[_Invocation, Depends()]) -> Response:
    """Invoke an assistant of the key's project."""
    return await _invoke(invocation, f"{_project_of(invocation.caller)}/{slug}", environment)


@router.get("/list-deployments", response_model=Deployments, responses=errors())
async def list_deployments(request: Request, caller: Reads) -> Deployments:
    """List the environments of all assistants that the key may use."""
    parts = parts_of(request)
    pointers = await parts.in_thread(parts.assistants.deployments, caller.workspace)
    return Deployments(deployments=[deployment(each) for each in pointers if caller.may_use(each.address)])


@router.get(_PROJECT_PATH, response_model=PlaygroundState, responses=errors(404))
async def config_of_project(
    slug: str, environment: str, request: Request, caller: Reads, v: _Version = None
) -> PlaygroundState:
    """Read the configuration of an assistant of the key's project."""
    return await _config(request, caller, f"{_project_of(caller)}/{slug}", environment, v)


@router.post(_PATH, **_INVOKE)
async def invoke(
    workspace: str,
    project: str,
    assistant: str,
    environment: str,
    invocation: Annotated[_Invocation, Depends()],
) -> Response:
    """Invoke an assistant: a job of its own, which waits its turn under the workspace's limits."""
    return await _invoke(invocation, f"{workspace}/{project}/{assistant}", environment)


@router.get(_PATH, response_model=PlaygroundState, responses=errors(404))
async def read_config(
    workspace: str,
    project: str,
    assistant: str,
    environment: str,
    request: Request,
    caller: Reads,
    v: _Version = None,
) -> PlaygroundState:
    """Read the configuration of an assistant."""
    return await _config(request, caller, f"{workspace}/{project}/{assistant}", environment, v)


async def _invoke(invocation: _Invocation, address: str, environment: str) -> Response:
    request, caller, version = invocation.request, invocation.caller, invocation.version
    parts = parts_of(request)
    config = await _deployed(request, caller, address, environment, version)
    asked = invocation.body or InvokeRequest()
    unrecorded = (invocation.do_not_record or "").lower() == "true" or bool(asked.doNotRecord)
    # What is not recorded cannot be found again.
    run = await begun(
        request,
        caller,
        None if unrecorded else invocation.key,
        operation=f"langtail.invoke {address} {environment}",
        body=asked_for(asked, version=version, headers=request.headers),
    )
    job = job_of(
        asked,
        job_id=run.job_id,
        address=address,
        environment=environment,
        version=version_in(version),
        config=config,
        headers=request.headers,
        unrecorded=unrecorded,
    )
    if asked.threadId:
        await parts.in_thread(_refuse_thread, parts, caller, asked.threadId)
    call = ChatCall(
        job=job,
        model=job.model or config.model or parts.settings.model or config.provider,
        dialect=Dialect.LANGTAIL,
        stream=job.tell == "stream",
        whole=config.output is not None,
        callers_tools=callers_tools(*((config.tools if job.tools is None else job.tools) or ())),
        within=caller.made_with,
    )
    try:
        response = await answered(request, call, run)
    except Problem as problem:
        if problem.code == Code.ASSISTANT_UNKNOWN:
            # It was taken away between our look and the worker's.
            raise _not_found() from problem
        raise
    if job.thread_id is not None:
        response.headers[THREAD_HEADER] = job.thread_id
    return response


async def _config(request: Request, caller: Caller, address: str, environment: str, v: str | None) -> PlaygroundState:
    config = await _deployed(request, caller, address, environment, v)
    return playground_state(config, default_model=parts_of(request).settings.model)


async def _deployed(request: Request, caller: Caller, address: str, environment: str, v: str | None) -> AssistantConfig:
    """Return the version that the path and `?v=` name; Problem 404 for what there is not, or not for this key."""
    parts = parts_of(request)
    version = version_in(v)
    if v and version is None:
        raise _not_found()
    found = await parts.in_thread(read_version, parts.engine, caller, address, environment=environment, version=version)
    if found is None:
        raise _not_found()
    return found.config


def _refuse_thread(parts: Parts, caller: Caller, thread_id: str) -> None:
    """Raise Problem 404 for a thread that was deleted or is not seen; one that nobody knows begins with its first job.

    Blocks.
    """
    gone = Threads(parts.engine).is_deleted(caller.workspace, thread_id)
    if gone or thread_of_others(parts, caller, [thread_id]) is not None:
        raise no_thread(thread_id)


def _project_of(caller: Caller) -> str:
    """Return the one project of the assistants that are shared with the key, as `workspace/project`."""
    stored = (address for address in caller.assistants or () if not address.endswith(INLINE_PATH))
    projects = {address.rpartition("/")[0] for address in stored}
    if len(projects) != 1:
        raise Problem(
            Kind.NOT_FOUND,
            "the key is not of one project; share assistants of one project with it, "
            "or use the path /{workspace}/{project}/{assistant}/{environment}",
            code="no_project",
        )
    return projects.pop()


def _not_found() -> Problem:
    return Problem(Kind.NOT_FOUND, "Prompt deployment not found", code=DEPLOYMENT_NOT_FOUND)
