"""The one place where the requests of batches meet those of `/v1/chat/completions`: the same model, the same job."""

from __future__ import annotations

from typing import Any

from producer.gateway.dialects.openai_chat import ChatCompletionRequest
from schemas.assistant import InlineAssistant
from schemas.job import InvokeJob


class ChatJobs:
    """Makes the jobs of one batch."""

    def __init__(self, workspace: str) -> None:
        """Make jobs of this workspace."""
        self._workspace = workspace

    def job_of(self, body: dict[str, Any]) -> InvokeJob:
        """Return the job that the body of a request asks for; raises ValidationError or Problem as the route does."""
        request = ChatCompletionRequest.model_validate(body)
        return InvokeJob(
            inline=InlineAssistant(workspace=self._workspace, name="chat", model=request.model),
            messages=request.messages,
            temperature=request.temperature,
            keep_thread=False,
        )
