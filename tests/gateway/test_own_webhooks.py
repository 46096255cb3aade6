"""`/v1/webhooks`: deliveries, endpoints and the signing secret over our own API."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlmodel import Session

from producer.gateway.keys import Scope
from schemas.tables import Delivery, WebhookEndpoint
from tests.at_work import Scene
from tests.gateway.own import problem
from tests.served_gateway import ServedGateway

URL = "https://hooks.invalid/a"


@pytest.fixture
def deliveries(scene: Scene) -> list[str]:
    """The ids of three deliveries that have failed, the oldest first, and an endpoint that is disabled."""
    ids = [f"msg_{scene.workspace}_{number}" for number in range(3)]
    now = datetime.now(UTC)
    with Session(scene.works.engine) as session:
        for number, id_ in enumerate(ids):
            session.add(
                Delivery(
                    id=id_,
                    workspace=scene.workspace,
                    event_type="job.failed",
                    batch_id=f"b{number}",
                    url=URL,
                    body='{"type":"job.failed"}',
                    state="failed",
                    attempts=3,
                    next_attempt_at=now,
                    last_status=500,
                    created_at=now + timedelta(seconds=number),
                )
            )
        session.add(WebhookEndpoint(workspace=scene.workspace, url=URL, disabled_at=now, disabled_reason="410 Gone"))
        session.commit()
    return ids


def test_deliveries_are_listed_shown_and_sent_again(client: httpx.Client, deliveries: list[str]) -> None:
    first = client.get("/v1/webhooks/deliveries?limit=2&state=failed").json()
    rest = client.get("/v1/webhooks/deliveries", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [each["id"] for page in (first, rest) for each in page["data"]] == deliveries[::-1]
    assert "body" not in first["data"][0]
    shown = client.get(f"/v1/webhooks/deliveries/{deliveries[0]}").json()
    assert (shown["body"], shown["next_attempt_at"]) == ('{"type":"job.failed"}', None)
    replayed = client.post(f"/v1/webhooks/deliveries/{deliveries[0]}/replay").json()
    assert (replayed["state"], replayed["replayed_at"] is None) == ("pending", False)
    assert [each["id"] for each in client.get("/v1/webhooks/deliveries?batch=b1").json()["data"]] == [deliveries[1]]


def test_an_endpoint_that_is_disabled_is_listed_and_enabled(client: httpx.Client, deliveries: list[str]) -> None:
    (endpoint,) = client.get("/v1/webhooks/endpoints").json()["data"]
    assert (endpoint["url"], endpoint["state"], endpoint["disabled_reason"]) == (URL, "disabled", "410 Gone")
    assert client.post("/v1/webhooks/endpoints/enable", json={"url": URL}).status_code == 204
    assert client.get("/v1/webhooks/endpoints").json()["data"] == []
    assert problem(client.post("/v1/webhooks/endpoints/enable", json={"url": URL})) == (404, "endpoint_unknown")


def test_an_endpoint_is_subscribed_to_batches_and_unsubscribed_by_its_workspace_alone(
    gateway: ServedGateway, client: httpx.Client
) -> None:
    for form in ("openai", "assistq"):
        assert client.put("/v1/webhooks/subscriptions", json={"url": URL, "form": form}).json()["form"] == form
    with gateway.client("foreign") as foreign:
        assert foreign.get("/v1/webhooks/subscriptions").json() == {"data": []}
        gone = foreign.delete("/v1/webhooks/subscriptions", params={"url": URL})
        assert problem(gone) == (404, "subscription_unknown")
    (subscription,) = client.get("/v1/webhooks/subscriptions").json()["data"]
    assert (subscription["url"], subscription["form"]) == (URL, "assistq")
    assert client.delete("/v1/webhooks/subscriptions", params={"url": URL}).status_code == 204
    assert client.get("/v1/webhooks/subscriptions").json() == {"data": []}


def test_the_signing_secret_is_shown_and_rotated(client: httpx.Client) -> None:
    secret = client.get("/v1/webhooks/secret")
    assert secret.headers["cache-control"] == "no-store"
    assert client.get("/v1/webhooks/secret").json() == secret.json()
    made = client.post("/v1/webhooks/secret/rotate", json={"overlap_hours": 1}).json()
    assert made["secret"].startswith("whsec_")
    assert client.get("/v1/webhooks/secret").json() == made != secret.json()
    assert problem(client.post("/v1/webhooks/secret/rotate", json={"overlap_hours": -1})) == (400, "invalid_request")


def test_another_workspace_or_a_key_without_the_scope_meets_none_of_it(
    gateway: ServedGateway, scene: Scene, deliveries: list[str]
) -> None:
    with (
        gateway.client("foreign") as foreign,
        gateway.client(scene.workspace, scopes=[Scope.RUN, Scope.READ]) as narrow,
    ):
        place = f"/v1/webhooks/deliveries/{deliveries[0]}"
        assert problem(foreign.get(place)) == (404, "delivery_unknown")
        assert problem(foreign.post(f"{place}/replay")) == (404, "delivery_unknown")
        assert foreign.get("/v1/webhooks/deliveries").json()["data"] == []
        assert foreign.get("/v1/webhooks/endpoints").json()["data"] == []
        assert problem(foreign.post("/v1/webhooks/endpoints/enable", json={"url": URL})) == (404, "endpoint_unknown")
        assert problem(narrow.get("/v1/webhooks/secret")) == (403, "missing_scope")
