"""OpenAI's chat completions, and the list of models, over any provider behind us."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict

from producer.gateway.access import Caller, caller
from producer.gateway.keys import Scope
from producer.gateway.parts import parts_of
from producer.gateway.strict_json import StrictJsonRoute
from schemas.assistant import InlineAssistant
from schemas.chat import Message
from schemas.job import InvokeJob
from schemas.result import JobResult

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
    return chat_completion(await parts_of(request).calls.answer(job, request))


def chat_completion(result: JobResult) -> dict[str, Any]:
    """Return the result as OpenAI's `chat.completion`."""
    message: dict[str, Any] = {"role": "assistant", "content": result.output}
    if result.tool_calls:
        message["tool_calls"] = [call.to_openai() for call in result.tool_calls]
    return {
        "id": f"chatcmpl-{result.job_id}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": result.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": result.finish_reason}],
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
            "total_tokens": result.prompt_tokens + result.completion_tokens,
        },
    }
