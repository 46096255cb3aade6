"""Our own API: the endpoints that are told of every batch which is made over OpenAI's API, and in whose form."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from producer.gateway.access import ManagesWebhooks
from producer.gateway.dialects.own.problem_details import PROBLEMS
from producer.gateway.dialects.own.webhooks import EndpointRequest
from producer.gateway.http.strict_json import StrictJsonRoute
from producer.gateway.parts import parts_of
from producer.gateway.problem import Kind, Problem
from producer.subscriptions import Subscriptions
from schemas.errors import InputError
from schemas.tables import WebhookSubscription
from schemas.webhook import Form

router = APIRouter(route_class=StrictJsonRoute, tags=["Webhooks"], responses=PROBLEMS)


class SubscriptionRequest(EndpointRequest):
    """An endpoint to tell of batches, and how."""

    form: Form = Form.OPENAI


class SubscriptionView(BaseModel):
    """An endpoint that is told of batches, in the form of assistq's events or of OpenAI's."""

    url: str
    form: Form
    created_at: datetime


class Subscribed(BaseModel):
    """All of a workspace, by URL; there are few."""

    data: list[SubscriptionView]


@router.get("/v1/webhooks/subscriptions", response_model=Subscribed)
async def list_subscriptions(request: Request, caller: ManagesWebhooks) -> Subscribed:
    """List the endpoints that are told of every batch which is made over OpenAI's API."""
    parts = parts_of(request)
    found = await parts.in_thread(Subscriptions(parts.engine).of, caller.workspace)
    return Subscribed(data=[_view(row) for row in found])


@router.put("/v1/webhooks/subscriptions", response_model=SubscriptionView)
async def subscribe(body: SubscriptionRequest, request: Request, caller: ManagesWebhooks) -> SubscriptionView:
    """Tell an endpoint of batches from now on; again, to choose another form."""
    parts = parts_of(request)
    try:
        row = await parts.in_thread(Subscriptions(parts.engine).subscribe, caller.workspace, body.url, form=body.form)
    except InputError as exc:
        raise Problem(Kind.CONFLICT, exc.what, code="too_many_subscriptions") from exc
    return _view(row)


@router.delete("/v1/webhooks/subscriptions", status_code=204, response_class=Response)
async def unsubscribe(
    request: Request, caller: ManagesWebhooks, url: Annotated[str, Query(min_length=1, max_length=2048)]
) -> Response:
    """Tell an endpoint no more."""
    parts = parts_of(request)
    # No stored URL has what a database cannot take.
    known = url.isprintable() and await parts.in_thread(Subscriptions(parts.engine).unsubscribe, caller.workspace, url)
    if not known:
        raise Problem(Kind.NOT_FOUND, f"{url!r} is not subscribed", code="subscription_unknown", param="url")
    return Response(status_code=204)


def _view(row: WebhookSubscription) -> SubscriptionView:
    return SubscriptionView(url=row.url, form=Form(row.form), created_at=row.created_at)
