"""A job as the JSON that travels: what a row of a file becomes, without a model being built for each."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.job import InvokeJob


@dataclass(slots=True)
class WrittenJob:
    """A job that is written already, and what a producer has to know of it besides.

    `json` is what the job itself would be written as; whoever made it has checked all that
    InvokeJob checks.
    """

    json: bytes
    workspace: str
    route: str
    thread_id: str | None = None

    @property
    def job(self) -> InvokeJob:
        """Return the job."""
        return InvokeJob.model_validate_json(self.json)
