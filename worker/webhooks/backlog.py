"""Which deliveries are to be tried now: fairly over their endpoints, at a cost that no backlog raises.

What is found is a hint: the claim decides (deliveries.py). Everything here blocks; errors of the
database are SQLAlchemy's own.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, column, func, select, text
from sqlmodel import col

from schemas.tables import Delivery, UtcDateTime, WebhookEndpoint
from worker.webhooks.breaker import HEALTHY, Health, room
from worker.webhooks.endpoints import Endpoint, deliveries_of, health_of, pending, running

# The longest due are looked at first. Where they are as many, others may stand behind those of an
# endpoint that takes none, and one of each endpoint is looked for, from where the last look ended.
_LONGEST_DUE = 200
_ENDPOINTS_A_LOOK = 500

# Goes from the first pending delivery of one endpoint to that of the next, by descents into the index
# deliveries_of_endpoint, whose condition it repeats. Written as (workspace, url) > (…, …), SQLite would
# use the index for the workspace alone.
_NEXT = """
    COALESCE(
        (SELECT id FROM deliveries
         WHERE state = 'pending' AND workspace = {workspace} AND url > {url}
         ORDER BY url, next_attempt_at LIMIT 1),
        (SELECT id FROM deliveries
         WHERE state = 'pending' AND workspace > {workspace}
         ORDER BY workspace, url, next_attempt_at LIMIT 1))
"""
_FIRST_OF_EACH = text(
    f"""
    WITH RECURSIVE reached (number, id, in_workspace, at_url, due_at) AS (
        SELECT 1, id, workspace, url, next_attempt_at FROM deliveries
        WHERE id = {_NEXT.format(workspace=":workspace", url=":url")}
        UNION ALL
        SELECT number + 1, here.id, here.workspace, here.url, here.next_attempt_at
        FROM reached JOIN deliveries here ON here.id = {_NEXT.format(workspace="in_workspace", url="at_url")}
        WHERE number < :at_most
    )
    SELECT id, in_workspace, at_url, due_at FROM reached
    """  # noqa: S608 - made of constants
).columns(column("id"), column("in_workspace"), column("at_url"), column("due_at", UtcDateTime()))


class _Found(NamedTuple):
    id: str
    workspace: str
    url: str
    next_attempt_at: datetime

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.workspace, self.url)


_FOUND = col(Delivery.id), col(Delivery.workspace), col(Delivery.url), col(Delivery.next_attempt_at)
_BEFORE_ALL = Endpoint("", "")


class Backlog:
    """What is due in one database. One caller at a time: it remembers where its last look ended."""

    def __init__(self, engine: Engine) -> None:
        """Keep the engine."""
        self._engine = engine
        self._looked_up_to = _BEFORE_ALL

    def due(self, now: datetime, *, limit: int) -> list[str]:
        """Return the ids of up to `limit` deliveries whose time has come and whose endpoints take more now.

        One of each endpoint comes before the second of any; of these, the longest due comes first.
        """
        with self._engine.connect() as connection:
            found = _longest_due(connection, now)
            if len(found) == _LONGEST_DUE:
                found += [each for each in self._first_of_each(connection) if each.next_attempt_at <= now]
            if not found:
                return []
            rooms = _Rooms(connection, now)
        # How many of the same endpoint come before it, for each that there is room for.
        ranks: dict[_Found, int] = {}
        taken: Counter[Endpoint] = Counter()
        for each in found:
            if each not in ranks and taken[each.endpoint] < rooms.of(each.endpoint):
                ranks[each] = taken[each.endpoint]
                taken[each.endpoint] += 1
        in_turn = sorted(ranks, key=lambda each: (ranks[each], each.next_attempt_at))
        return [each.id for each in in_turn[:limit]]

    def due_of(self, endpoint: Endpoint, now: datetime) -> list[str]:
        """Return the ids of as many due deliveries of the endpoint as it takes now, the longest due first."""
        with self._engine.connect() as connection:
            health = health_of(connection, endpoint)
            more = room(health, running=running(connection, endpoint, now=now), now=now)
            if more == 0:
                return []
            statement = (
                select(col(Delivery.id))
                .where(*deliveries_of(endpoint), pending(), col(Delivery.next_attempt_at) <= now)
                .order_by(col(Delivery.next_attempt_at))
                .limit(more)
            )
            return list(connection.execute(statement).scalars())

    def _first_of_each(self, connection: Connection) -> list[_Found]:
        found = _found(
            connection.execute(_FIRST_OF_EACH, {**self._looked_up_to._asdict(), "at_most": _ENDPOINTS_A_LOOK})
        )
        # Fewer: these were the last ones.
        self._looked_up_to = found[-1].endpoint if len(found) == _ENDPOINTS_A_LOOK else _BEFORE_ALL
        return found


class _Rooms:
    """How many more deliveries each endpoint takes."""

    def __init__(self, connection: Connection, now: datetime) -> None:
        open_ = select(col(WebhookEndpoint.workspace), col(WebhookEndpoint.url), col(WebhookEndpoint.open_until)).where(
            col(WebhookEndpoint.open_until).is_not(None)
        )
        columns = col(Delivery.workspace), col(Delivery.url)
        claimed = select(*columns, func.count()).where(col(Delivery.claimed_until) > now).group_by(*columns)
        self._now = now
        self._open = {Endpoint(*key): Health(open_until=until) for *key, until in connection.execute(open_)}
        self._running = {Endpoint(*key): count for *key, count in connection.execute(claimed)}

    def of(self, endpoint: Endpoint) -> int:
        health = self._open.get(endpoint, HEALTHY)
        return room(health, running=self._running.get(endpoint, 0), now=self._now)


def _longest_due(connection: Connection, now: datetime) -> list[_Found]:
    statement = (
        select(*_FOUND)
        .where(pending(), col(Delivery.next_attempt_at) <= now)
        .order_by(col(Delivery.next_attempt_at))
        .limit(_LONGEST_DUE)
    )
    return _found(connection.execute(statement))


def _found(rows: Any) -> list[_Found]:
    return [_Found(*row) for row in rows]
