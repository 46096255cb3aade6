"""Langdock's assistant API: chat completions of stored and temporary assistants, and the models (CONTRACT.md 3).

No state: a client sends the whole conversation each time, and no thread is kept. Langdock answers 429 once a
workspace's minute is used up; here the job waits its turn under the same limits (decision 82).
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from producer.gateway.access import Caller, Runs, refuse_inline
from producer.gateway.dialects.langdock.answer import CompletionAnswer, answer_of, events_of
from producer.gateway.dialects.langdock.attached import Attached
from producer.gateway.dialects.langdock.errors import errors
from producer.gateway.dialects.langdock.request import CompletionRequest, job_of_stored, job_of_temporary
from producer.gateway.dialects.langdock.stored import StoredAssistants
from producer.gateway.http import sse
from producer.gateway.http.strict_json import StrictJsonRoute
from producer.gateway.models import models_of
from producer.gateway.parts import Parts, parts_of
from producer.gateway.stored_assistant import shared_assistants
from schemas.job import InvokeJob

router = APIRouter(route_class=StrictJsonRoute, tags=["Langdock"])

_RUN_ERRORS = errors(400, 402, 404, 409, 501, 502, 504)


class Model(BaseModel):
    """A model that an assistant may name; `created` is in milliseconds since 1970."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["system"]


class Models(BaseModel):
    """The models of the workspace."""

    object: Literal["list"]
    data: list[Model]


@router.post(
    "/assistant/v1/chat/completions",
    response_model=CompletionAnswer,
    response_model_exclude_unset=True,
    responses={**_RUN_ERRORS, 200: {"content": {"text/event-stream": {}}}},
)
async def create_assistant_completion(
    body: CompletionRequest, request: Request, caller: Runs
) -> dict[str, Any] | StreamingResponse:
    """Ask an assistant: a job, which waits its turn under the workspace's limits."""
    parts = parts_of(request)
    job = await parts.in_thread(_job_of, body, caller, parts)
    if body.stream:
        return await sse.event_stream(events_of(job, parts.calls.stream(job, request)))
    return answer_of(job, await parts.calls.answer(job, request))


@router.get("/assistant/v1/models", responses=errors())
async def list_assistant_models(request: Request, caller: Runs) -> Models:
    """List what `assistant.model` may name: the default model, and those of the workspace's assistants."""
    parts = parts_of(request)
    found = models_of(await shared_assistants(parts, caller), default=parts.settings.model)
    data = [
        Model(id=name, object="model", created=round(since.timestamp() * 1000), owned_by="system")
        for name, since in found.items()
    ]
    return Models(object="list", data=data)


def _job_of(body: CompletionRequest, caller: Caller, parts: Parts) -> InvokeJob:
    if body.assistant is not None:
        refuse_inline(caller)
        attached = Attached(parts.files, caller)
        return job_of_temporary(body, body.assistant, attached, workspace=caller.workspace)
    found = StoredAssistants(parts.engine, parts.assistants).find(caller, body.assistantId or "")
    attached = Attached(parts.files, caller, of_assistant=found.details.attachments)
    return job_of_stored(body, found.address, attached, attachment_ids=found.details.attachments)
