"""Batches of jobs as a caller of our own API may ask for them."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

from producer.duration import duration
from producer.gateway.dialects.own.job_requests import AssistantName, JobRequest
from schemas.assistant import Environment
from schemas.errors import InputError
from schemas.money import MOST
from schemas.webhook import checked_url

Spend = Annotated[Decimal, Field(ge=0, le=MOST, allow_inf_nan=False)]


class BatchTerms(BaseModel):
    """What is said of a batch as a whole.

    Its jobs that have not ended at `expires_at`, or within `expires_in` (`90s`, `30m`, `6h`, `2d`), end as
    expired; those that would spend more than `spend_cap` as over_budget.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    webhook: str | None = Field(default=None, max_length=2048, description="told once, signed, when the batch ends")
    expires_in: str | None = Field(default=None, max_length=20)
    expires_at: AwareDatetime | None = None
    spend_cap: Spend | None = None

    @field_validator("webhook")
    @classmethod
    def _webhook_is_an_address(cls, webhook: str | None) -> str | None:
        return None if webhook is None else _checked(checked_url, webhook)

    @field_validator("expires_in")
    @classmethod
    def _expires_in_is_a_duration(cls, text: str | None) -> str | None:
        if text is not None:
            _checked(duration, text)
        return text

    @model_validator(mode="after")
    def _ends_once(self) -> Self:
        if self.expires_in is not None and self.expires_at is not None:
            raise ValueError("say `expires_in` or `expires_at`, not both")
        return self

    def terms(self) -> dict[str, Any]:
        """Return them as Producer.enqueue_many takes them."""
        expires_at = self.expires_at if self.expires_in is None else datetime.now(UTC) + duration(self.expires_in)
        return {"webhook": self.webhook, "expires_at": expires_at, "spend_cap": self.spend_cap}


class JobBatchRequest(BatchTerms):
    """A batch of jobs; those that name no assistant are for the batch's."""

    assistant: AssistantName | None = None
    label: str = Field(default="", max_length=512)
    jobs: tuple[JobRequest, ...] = Field(min_length=1)


class UploadTerms(BatchTerms):
    """How the rows of a file become a batch, as parameters of the URL or as fields of the form.

    With `skip_bad_rows` the good rows are enqueued, and each bad one is in the results with its error.
    """

    assistant: AssistantName | None = None
    environment: Environment = "production"
    version: int | None = Field(default=None, ge=1, le=2**31 - 1)
    label: str | None = Field(default=None, max_length=512)
    skip_bad_rows: bool = False


def _checked(check: Any, text: str) -> Any:
    try:
        return check(text)
    except InputError as exc:
        raise ValueError(str(exc)) from exc
