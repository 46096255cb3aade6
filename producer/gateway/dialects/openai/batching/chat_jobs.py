"""The one place where the requests of batches meet those of `/v1/chat/completions`: the same model, the same job."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import Engine

from producer.gateway.access import Caller, refuse_inline
from producer.gateway.dialects.openai.chat import (
    ChatCompletionRequest,
    address_in,
    completion_job,
    unknown_model,
)
from producer.gateway.dialects.openai.unsupported import refuse_unsupported
from producer.gateway.stored_assistant import StoredAssistant, read_stored_assistant
from schemas.job import InvokeJob
from schemas.tables import OpenAIBatch

_ASSISTANTS_KEPT = 256


class ChatJobs:
    """Makes the jobs of one batch; in a thread."""

    def __init__(self, engine: Engine, batch: OpenAIBatch) -> None:
        """Make jobs for whoever made the batch: of its workspace, with the assistants that its key might use."""
        shared = None if batch.assistants is None else frozenset(batch.assistants)
        self._engine = engine
        self._caller = Caller(key_id="", workspace=batch.workspace, scopes=frozenset(), assistants=shared, rpm=None)
        self._assistant = lru_cache(_ASSISTANTS_KEPT)(self._read)

    def job_of(self, body: dict[str, Any]) -> InvokeJob:
        """Return the job that the body of a request asks for; raises ValidationError or Problem as the route does."""
        request = ChatCompletionRequest.model_validate(body)
        refuse_unsupported(request.model_extra or {})
        assistant = self._assistant(request.model)
        return completion_job(request, None, workspace=self._caller.workspace, assistant=assistant)

    def _read(self, model: str) -> StoredAssistant | None:
        named = address_in(model)
        if named is None:
            refuse_inline(self._caller)
            return None
        assistant = read_stored_assistant(self._engine, self._caller, *named)
        if assistant is None:
            raise unknown_model(model)
        return assistant
