"""Our own API: webhook deliveries, the endpoints that fail, and the secret that all are signed with.

They are of the workspace as a whole: the scope `webhooks` decides, not which assistants are shared with the key.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator

from producer.gateway.access import Caller, ManagesWebhooks
from producer.gateway.dialects.own.jobs import ID_PATTERN
from producer.gateway.dialects.own.pages import Cursor, Limit, Page, Place, page_of, place_of
from producer.gateway.dialects.own.problem_details import PROBLEMS
from producer.gateway.dialects.own.webhook_records import WebhookRecords
from producer.gateway.http.strict_json import StrictJsonRoute
from producer.gateway.parts import Parts, parts_of
from producer.gateway.problem import Kind, Problem
from producer.webhooks import Webhooks
from schemas.errors import InputError
from schemas.signing_secrets import OVERLAP_HOURS
from schemas.tables import Delivery, WebhookEndpoint
from schemas.webhook import DeliveryState, checked_url

router = APIRouter(route_class=StrictJsonRoute, tags=["Webhooks"], responses=PROBLEMS)

# A delivery's id has that of its job or batch in it.
DeliveryId = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,299}$")]

# A year: whoever wants longer has not rotated.
_OVERLAP_AT_MOST_HOURS = 24 * 365
# Endpoints are listed by URL: the time in their cursors says nothing.
_NO_TIME = datetime(2000, 1, 1, tzinfo=UTC)

EndpointState = Literal["disabled", "open", "probing", "failing"]


class DeliveryView(BaseModel):
    """An event on its way to an endpoint; its id is the `webhook-id` header."""

    id: str
    event_type: str
    batch_id: str | None
    job_id: str | None
    url: str
    state: DeliveryState
    attempts: int
    next_attempt_at: datetime | None = Field(description="null unless it is pending")
    last_status: int | None
    last_error: str | None
    created_at: datetime
    replayed_at: datetime | None
    delivered_at: datetime | None


class DeliveryWithBody(DeliveryView):
    """A delivery with what it says, as the text that is sent."""

    body: str


class EndpointView(BaseModel):
    """What is held against an endpoint: nothing is sent to one that is `disabled`, or `open` until `open_until`."""

    url: str
    state: EndpointState
    failures: int
    failing_since: datetime | None
    open_until: datetime | None
    disabled_at: datetime | None
    disabled_reason: str | None


class EndpointRequest(BaseModel):
    """Which endpoint is meant."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(max_length=2048)

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        try:
            return checked_url(url)
        except InputError as exc:
            raise ValueError(str(exc)) from exc


class SigningSecret(BaseModel):
    """The secret (`whsec_…`) that the workspace's webhooks are signed with."""

    secret: str


class Rotation(BaseModel):
    """How long webhooks are signed with the secret before, too."""

    model_config = ConfigDict(extra="forbid")

    overlap_hours: float = Field(default=OVERLAP_HOURS, ge=0, le=_OVERLAP_AT_MOST_HOURS, allow_inf_nan=False)


@router.get("/v1/webhooks/deliveries", response_model=Page[DeliveryView])
async def list_deliveries(
    request: Request,
    caller: ManagesWebhooks,
    state: DeliveryState | None = None,
    batch: Annotated[str | None, Query(pattern=ID_PATTERN)] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Page[DeliveryView]:
    """List deliveries, the youngest first."""
    parts = parts_of(request)
    found = await parts.in_thread(
        WebhookRecords(parts.engine, caller.workspace).deliveries,
        state=state,
        batch_id=batch,
        place=place_of(cursor),
        limit=limit + 1,
    )
    return page_of(found, limit=limit, show=_view, place=lambda row: Place(row.created_at, row.id))


@router.get("/v1/webhooks/deliveries/{delivery_id}", response_model=DeliveryWithBody)
async def get_delivery(delivery_id: DeliveryId, request: Request, caller: ManagesWebhooks) -> DeliveryWithBody:
    """Show a delivery with its body."""
    row = await _found(parts_of(request), delivery_id, caller)
    return DeliveryWithBody(**_view(row).model_dump(), body=row.body)


@router.post("/v1/webhooks/deliveries/{delivery_id}/replay", response_model=DeliveryView)
async def replay_delivery(delivery_id: DeliveryId, request: Request, caller: ManagesWebhooks) -> DeliveryView:
    """Send a delivery again, with the same id and body, whatever came of it; it is due at once."""
    parts = parts_of(request)
    await _found(parts, delivery_id, caller)
    replayed = await parts.in_thread(Webhooks(parts.engine).replay, [delivery_id], now=datetime.now(UTC))
    if not replayed:
        raise Problem(Kind.CONFLICT, f"delivery '{delivery_id}' is being sent at this moment", code="being_sent")
    return _view(await _found(parts, delivery_id, caller))


@router.get("/v1/webhooks/endpoints", response_model=Page[EndpointView])
async def list_endpoints(
    request: Request, caller: ManagesWebhooks, limit: Limit = 20, cursor: Cursor = None
) -> Page[EndpointView]:
    """List the endpoints that fail or are disabled, by URL; all others are healthy."""
    parts = parts_of(request)
    place = place_of(cursor)
    found = await parts.in_thread(
        WebhookRecords(parts.engine, caller.workspace).endpoints,
        after_url="" if place is None else place.id,
        limit=limit + 1,
    )
    return page_of(found, limit=limit, show=_endpoint, place=lambda row: Place(_NO_TIME, row.url))


@router.post("/v1/webhooks/endpoints/enable", status_code=204, response_class=Response)
async def enable_endpoint(body: EndpointRequest, request: Request, caller: ManagesWebhooks) -> Response:
    """Hold nothing against an endpoint any more: it gets events again."""
    parts = parts_of(request)
    try:
        await parts.in_thread(Webhooks(parts.engine).enable, caller.workspace, body.url)
    except InputError as exc:
        raise Problem(
            Kind.NOT_FOUND, f"nothing is held against the endpoint {body.url}", code="endpoint_unknown", param="url"
        ) from exc
    return Response(status_code=204)


@router.get("/v1/webhooks/secret", response_model=SigningSecret)
async def get_signing_secret(request: Request, response: Response, caller: ManagesWebhooks) -> SigningSecret:
    """Show the secret that the workspace's webhooks are signed with; it is made when it is first asked for."""
    parts = parts_of(request)
    response.headers["cache-control"] = "no-store"
    return SigningSecret(secret=await parts.in_thread(parts.records.signing_secret, caller.workspace))


@router.post("/v1/webhooks/secret/rotate", response_model=SigningSecret)
async def rotate_signing_secret(
    request: Request, response: Response, caller: ManagesWebhooks, body: Rotation | None = None
) -> SigningSecret:
    """Make a new secret; a receiver with either verifies for `overlap_hours`."""
    parts = parts_of(request)
    response.headers["cache-control"] = "no-store"
    overlap = timedelta(hours=(body or Rotation()).overlap_hours)
    rotate = Webhooks(parts.engine).rotate
    return SigningSecret(secret=await parts.in_thread(rotate, caller.workspace, now=datetime.now(UTC), overlap=overlap))


async def _found(parts: Parts, delivery_id: str, caller: Caller) -> Delivery:
    row = await parts.in_thread(WebhookRecords(parts.engine, caller.workspace).delivery, delivery_id)
    if row is None:
        raise Problem(Kind.NOT_FOUND, f"delivery '{delivery_id}' is not known", code="delivery_unknown")
    return row


def _view(row: Delivery) -> DeliveryView:
    values = {name: getattr(row, name) for name in DeliveryView.model_fields}
    if row.state != DeliveryState.PENDING:
        values["next_attempt_at"] = None
    return DeliveryView(**values)


def _endpoint(row: WebhookEndpoint) -> EndpointView:
    values = {name: getattr(row, name) for name in EndpointView.model_fields if name != "state"}
    return EndpointView(**values, state=_state(row))


def _state(row: WebhookEndpoint) -> EndpointState:
    if row.disabled_at is not None:
        return "disabled"
    if row.open_until is None:
        return "failing"
    return "open" if row.open_until > datetime.now(UTC) else "probing"
