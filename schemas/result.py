"""The result of a job, as `handle.result()`, the results file and a webhook show it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from schemas.outcome import Status


class JobResult(BaseModel):
    """How a job ended.

    `output` is the validated value, or the reply's text where no output spec was given;
    None unless the job succeeded. Tokens are the provider's own count, summed over all
    `requests` that the job made. `attempts` counts tries, the successful one included.
    """

    model_config = ConfigDict(frozen=True)

    job_id: str
    batch_id: str | None = None
    row: int | None = None
    custom_id: str | None = None
    status: Status
    output: Any = None
    assistant: str
    version: int | None = None
    thread_id: str | None = None
    model: str | None = None
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: int = 0
    error_code: str | None = None
    error: str | None = None
    raw_reply: str | None = None
    finished_at: datetime

    @property
    def succeeded(self) -> bool:
        """Return whether there is an output to use."""
        return self.status is Status.SUCCEEDED
