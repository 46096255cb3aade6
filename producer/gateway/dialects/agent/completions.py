"""The agent dialect: an OpenAI-compatible chat completion of one agent, with sessions (CONTRACT.md section 2).

`agent_id` names a stored assistant of the key's workspace as `project:assistant`, with `@environment` or
`@version` (a number) behind it for another than production's; its full address does too, with `/` as it is,
as `%2F` or as `:`. Neither `:` nor `@` can be part of a name, and an id fits into one segment of a path, so that an
OpenAI client works with a base URL that ends in `/assistants/{agent_id}`.

Where the vendor says nothing: an agent's own temperature, or other parameter, wins over the vendor's default
(temperature 0, n 1), and the request's over both (row 54). A session is a thread; one that was created is known
by its id as soon as the answer, or the stream, begins. `session_id` stands in each chunk of a stream, and
`index_context_info` in those that come after the text, for only then it is known (row 56). The caller's tools
stand beside the agent's own, which run here (row 57). `history_tokens` of the assistant bounds what of a session is
sent again, oldest turns first (row 58). Fields that the vendor does not document are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request
from fastapi.responses import Response

from producer.gateway.access import Caller, Runs
from producer.gateway.bodies import Dialect
from producer.gateway.chat.answer import Begun, ChatCall, answered, begun
from producer.gateway.chat.completion import ChatCompletion
from producer.gateway.chat.request import ChatRequest, callers_tools, client_tools, job_of, messages_of
from producer.gateway.dialects.agent.errors import AGENT_ERRORS
from producer.gateway.dialects.agent.sessions import has_session, new_session_id
from producer.gateway.http.strict_json import StrictJsonRoute
from producer.gateway.idempotency import IdempotencyKey
from producer.gateway.parts import Parts, parts_of
from producer.gateway.problem import Kind, Problem
from producer.gateway.stored_assistant import StoredAssistant, stored_assistant
from schemas.result import JobResult

BASE = "/api/v1/compatibility/openai/v1"
router = APIRouter(route_class=StrictJsonRoute, prefix=BASE, tags=["Agent"], responses=AGENT_ERRORS)

_AGENT_ID = re.compile(r"(?:([^/:@]+)[/:])?([^/:@]+)[/:]([^/:@]+)(?:@([^/:@]+))?")
_ROLES = ("user", "assistant", "tool")
_STREAM_ANSWER: dict[str, Any] = {"text/event-stream": {}}


class AgentCompletionRequest(ChatRequest):
    """What is asked for; `model` may only repeat the agent's own."""

    create_session: bool | None = None
    store_in_session: UUID | None = None
    model: str | None = None


class AgentCompletion(ChatCompletion):
    """A chat completion; `session_id` if it belongs to one, and the passages that the agent found if it looked."""

    session_id: UUID | None = None
    index_context_info: list[dict[str, Any]] | None = None


@router.post(
    "/assistants/{agent_id:path}/chat/completions",
    response_model=AgentCompletion,
    responses={200: {"content": _STREAM_ANSWER}},
)
@router.post(
    "/agents/{agent_id:path}/chat/completions",
    response_model=AgentCompletion,
    responses={200: {"content": _STREAM_ANSWER}},
)
async def create_agent_chat_completion(
    agent_id: str,
    body: AgentCompletionRequest,
    request: Request,
    caller: Runs,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Let the agent answer, in a new session, in one that there is, or without any."""
    parts = parts_of(request)
    agent = await agent_of(parts, caller, agent_id)
    _refuse_roles(body)
    _refuse_another_model(body, agent, parts)
    operation = f"agent.chat.completions {agent.address}"
    run = await begun(request, caller, idempotency_key, operation=operation, body=body)
    session_id = await _session_id(parts, caller, body, run)
    call = _call(body, run, agent, session_id=session_id, model=agent.model(parts.settings))
    return await answered(request, replace(call, within=caller.made_with), run)


async def agent_of(parts: Parts, caller: Caller, agent_id: str) -> StoredAssistant:
    """Return the agent of this id; Problem 404 for one that the caller cannot use."""
    named = _AGENT_ID.fullmatch(agent_id)
    agent = None
    if named is not None:
        workspace, project, name, which = named.groups()
        address = f"{workspace or caller.workspace}/{project}/{name}"
        agent = await stored_assistant(parts, caller, address, which)
    if agent is None:
        raise Problem(
            Kind.NOT_FOUND,
            f"there is no agent '{agent_id}'; an id is `project:assistant`, and `GET {BASE}/agents` lists yours",
            code="agent_not_found",
        )
    return agent


def _refuse_roles(body: AgentCompletionRequest) -> None:
    for at, message in enumerate(body.messages):
        if message.role not in _ROLES:
            raise Problem(
                Kind.BAD_REQUEST,
                f"messages[{at}].role: unsupported role '{message.role[:40]}'; the agent has its instructions, "
                f"send one of {', '.join(_ROLES)}",
                code="unsupported_role",
                param=f"messages[{at}].role",
            )


def _refuse_another_model(body: AgentCompletionRequest, agent: StoredAssistant, parts: Parts) -> None:
    own = agent.model(parts.settings)
    if body.model and body.model != own:
        raise Problem(
            Kind.BAD_REQUEST,
            f"model: the agent's is {own or 'not set'}; name it, or leave `model` out or empty",
            code="unexpected_model",
            param="model",
        )


async def _session_id(parts: Parts, caller: Caller, body: AgentCompletionRequest, run: Begun) -> str | None:
    if body.store_in_session is None:
        return new_session_id(run.job_id) if body.create_session else None
    session_id = str(body.store_in_session)
    if body.create_session:
        raise Problem(
            Kind.BAD_REQUEST,
            "`create_session` begins a new session and `store_in_session` goes on with one; send one of the two",
            code="two_sessions",
            param="store_in_session",
        )
    if not await has_session(parts, caller, session_id):
        raise Problem(
            Kind.NOT_FOUND,
            f"there is no session {session_id}; begin one with `create_session`",
            code="session_not_found",
            param="store_in_session",
        )
    return session_id


def _call(
    body: AgentCompletionRequest, run: Begun, agent: StoredAssistant, *, session_id: str | None, model: str | None
) -> ChatCall:
    config = agent.config
    given = client_tools(body.tools, kind=Kind.UNPROCESSABLE)
    tools = None if given is None else (*(config.tools or ()), *given)
    temperature = body.temperature
    if temperature is None and config.temperature is None and config.provider in {"openai", "agent"}:
        temperature = 0.0
    job = job_of(
        Kind.UNPROCESSABLE,
        assistant=agent.address,
        version=agent.version,
        id=run.job_id,
        messages=messages_of(body.messages, kind=Kind.UNPROCESSABLE),
        thread_id=session_id,
        keep_thread=False,
        tools=tools,
        tool_choice=body.tool_choice,
        temperature=temperature,
        n=body.n,
        seed=body.seed,
        stop=body.stop,
        max_tokens=body.max_tokens,
        tell="stream" if body.stream else "end",
    )

    def beside(result: JobResult | None) -> Mapping[str, Any]:
        session = {} if session_id is None else {"session_id": session_id}
        found = {"index_context_info": list(result.retrieved)} if result is not None and result.retrieved else {}
        return {**session, **found}

    return ChatCall(
        job=job,
        model=model or "",
        dialect=Dialect.AGENT,
        stream=bool(body.stream),
        include_usage=body.include_usage,
        whole=config.output is not None,
        callers_tools=callers_tools(*(config.tools or () if tools is None else tools)),
        beside=beside,
    )
