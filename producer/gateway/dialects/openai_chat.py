"""OpenAI's chat completions, and the list of models, over any provider behind us."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict

from producer.gateway.access import Caller, caller
from producer.gateway.chat_completion import chat_completion, completion_id_of
from producer.gateway.keys import Scope
from producer.gateway.parts import parts_of
from producer.gateway.strict_json import StrictJsonRoute
from schemas.assistant import InlineAssistant
from schemas.chat import Message
from schemas.job import InvokeJob

router = APIRouter(tags=["OpenAI"], route_class=StrictJsonRoute)


class ChatCompletionRequest(BaseModel):
    """What is asked for."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: tuple[Message, ...]
    temperature: float | None = None


@router.post("/v1/chat/completions")
async def create_chat_completion(
    body: ChatCompletionRequest, request: Request, caller: Annotated[Caller, Depends(caller(Scope.RUN))]
) -> dict[str, Any]:
    """Complete a chat: a job of its own, which waits its turn under the workspace's limits."""
    job = InvokeJob(
        inline=InlineAssistant(workspace=caller.workspace, name="chat", model=body.model),
        messages=body.messages,
        temperature=body.temperature,
        keep_thread=False,
    )
    result = await parts_of(request).calls.answer(job, request)
    return chat_completion(result, completion_id=completion_id_of(result.job_id))
