"""The rows of webhook deliveries, as those write them who have something to tell."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, assert_never

from sqlmodel import Session, col, select

from schemas.tables import Delivery
from schemas.webhook import DeliveryState, Form, WebhookEvent


def new_delivery(
    *,
    id: str,  # noqa: A002 - the column's name
    workspace: str,
    event_type: str,
    url: str,
    data: dict[str, Any],
    now: datetime,
    form: Form = Form.ASSISTQ,
    batch_id: str | None = None,
    job_id: str | None = None,
    unrecorded: bool = False,
) -> Delivery:
    """Return the row of a delivery that is due at once; its body is fixed here for all attempts.

    An `unrecorded` one's has no content: worker/webhooks/unrecorded.py puts that in when it is sent.

    The caller adds it in the transaction of what it tells about. The row's id is `id`, or a
    hash of it where it holds a full stop.
    """
    delivery_id = _signable(id)
    return Delivery(
        id=delivery_id,
        workspace=workspace,
        event_type=event_type,
        batch_id=batch_id,
        job_id=job_id,
        url=url,
        body=_body(form, delivery_id, event_type, data, now=now),
        unrecorded=unrecorded,
        state=DeliveryState.PENDING.value,
        next_attempt_at=now,
        created_at=now,
    )


def with_free_ids(session: Session, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
    """Give those whose id is taken one of their own, where the row of what they tell about is written only now.

    Then the id is that of an earlier end, whose row somebody deleted and whose delivery stayed: pruning leaves no
    such delivery, a restored table or a person with SQL may. This end is another one. Under the old id a
    receiver would take it for a repetition; and to write nothing would end a job that was paid for without
    telling, or, refused by the database, not at all.
    """
    if not deliveries:
        return deliveries
    of_them = col(Delivery.id).in_([delivery.id for delivery in deliveries])
    taken = set(session.exec(select(Delivery.id).where(of_them)))
    for delivery in deliveries:
        if delivery.id in taken:
            delivery.id = f"msg_{uuid.uuid4().hex}"
    return deliveries


def _body(form: Form, delivery_id: str, event_type: str, data: dict[str, Any], *, now: datetime) -> str:
    match form:
        case Form.ASSISTQ:
            return WebhookEvent(type=event_type, timestamp=now, data=data).model_dump_json()
        case Form.OPENAI:
            event = {"object": "event", "id": delivery_id, "type": event_type, "created_at": int(now.timestamp())}
            return json.dumps({**event, "data": data}, ensure_ascii=False)
        case _:
            assert_never(form)


def _signable(id_: str) -> str:
    """Return an id without a full stop, the same for the same id.

    What is signed is `id.timestamp.body`, and an id may hold a batch's name, which users
    choose: with a full stop in it, one signature could stand for two messages.
    """
    return id_ if "." not in id_ else "msg_" + hashlib.sha256(id_.encode()).hexdigest()[:32]
