"""`assistq webhooks`: what was told to whom, sending it again, and the secrets to verify it with."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from rich.table import Table

from producer.cli import access
from producer.cli.console import listing, out, print_json, say, shown
from producer.cli.subscriptions import subscribe, subscriptions, unsubscribe
from producer.records import Records
from producer.webhooks import Webhooks
from schemas.assistant import checked_workspace
from schemas.errors import InputError
from schemas.settings import Settings
from schemas.signing_secrets import OVERLAP_HOURS
from schemas.tables import Delivery, WebhookEndpoint
from schemas.webhook import DeliveryState

# A year: whoever wants longer has not rotated.
_OVERLAP_AT_MOST_HOURS = 24 * 365


@click.group()
def webhooks() -> None:
    """Look at webhook deliveries, send them again, rotate secrets."""


for command in (subscribe, unsubscribe, subscriptions):
    webhooks.add_command(command)


@webhooks.command(name="list")
@click.option("--batch", "batch_id", help="Only the deliveries of this batch, and of its jobs.")
@click.option(
    "--state", type=click.Choice([state.value for state in DeliveryState]), help="Only the deliveries in this state."
)
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="How many at most.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(*, batch_id: str | None, state: str | None, limit: int, as_json: bool) -> None:
    """List the newest deliveries."""
    with access.database(Settings.from_env()) as engine:
        deliveries = Webhooks(engine).deliveries(batch_id=batch_id, state=state, limit=limit)
    if as_json:
        print_json([each.model_dump(mode="json", exclude={"body"}) for each in deliveries])
        return
    table = listing("id", "event", "state", "attempts", "answer and url")
    for each in deliveries:
        table.add_row(
            shown(each.id),
            each.event_type,
            each.state,
            str(each.attempts),
            shown(f"{_answer(each)} {each.url}".strip()),
        )
    out.print(table)


@webhooks.command()
@click.argument("delivery_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(delivery_id: str, *, as_json: bool) -> None:
    """Show delivery ID: its attempts, the last answer, its body and how its endpoint is."""
    with access.database(Settings.from_env()) as engine:
        known = Webhooks(engine)
        delivery = known.delivery(delivery_id)
        endpoint = known.endpoint(delivery.workspace, delivery.url)
    if as_json:
        print_json({**delivery.model_dump(mode="json"), "endpoint": _endpoint_json(delivery, endpoint)})
        return
    lines = {
        "delivery": delivery.id,
        "event": delivery.event_type,
        "workspace": delivery.workspace,
        "batch": delivery.batch_id or "",
        "job": delivery.job_id or "",
        "url": delivery.url,
        "endpoint": _how_it_is(endpoint),
        "state": delivery.state,
        "attempts": str(delivery.attempts),
        "last answer": _answer(delivery),
        "created": _local(delivery.created_at),
        "delivered": _local(delivery.delivered_at),
        "next attempt": _local(delivery.next_attempt_at) if delivery.state == DeliveryState.PENDING else "",
        "body": delivery.body,
    }
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines.items():
        if value:
            table.add_row(name, shown(value))
    out.print(table)


@webhooks.command()
@click.argument("delivery_ids", metavar="[ID]...", nargs=-1)
@click.option("--batch", "batch_id", help="All deliveries of this batch, and of its jobs.")
@click.option("--failed", is_flag=True, help="All that have failed; with --batch those of it.")
def replay(delivery_ids: tuple[str, ...], *, batch_id: str | None, failed: bool) -> None:
    """Send deliveries again, with the same ids and bodies: those named, --batch BATCH or --failed.

    They are due at once, and on the schedule of retries from its start. Delivered ones are sent
    again too where they are named or of the batch.
    """
    if bool(delivery_ids) == (batch_id is not None or failed):
        raise click.UsageError("name IDs, or else say --batch or --failed")
    now = datetime.now(UTC)
    with access.database(Settings.from_env()) as engine:
        known = Webhooks(engine)
        if delivery_ids:
            replayed = known.replay(sorted(set(delivery_ids)), now=now)
            for each in sorted(set(delivery_ids) - set(replayed)):
                say(f"{each} is being sent at this moment: nothing was changed")
        else:
            replayed = known.replay_all(batch_id=batch_id, failed=failed, now=now)
            if not replayed and batch_id is not None and not known.deliveries(batch_id=batch_id, state=None, limit=1):
                raise InputError(f"batch '{batch_id}' has no deliveries", mend="`assistq webhooks list` lists all")
        disabled = known.disabled_among(replayed)
    say(f"{len(replayed)} deliveries are due again; running workers send them")
    for endpoint in disabled:
        say(
            f"the endpoint {endpoint.url} is disabled ({endpoint.disabled_reason}) and gets nothing: "
            f"`assistq webhooks enable {endpoint.workspace} {endpoint.url}`, then replay again"
        )


@webhooks.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def endpoints(*, as_json: bool) -> None:
    """List the endpoints that fail or are disabled; all others are healthy."""
    with access.database(Settings.from_env()) as engine:
        found = Webhooks(engine).endpoints()
    if as_json:
        print_json([{**each.model_dump(mode="json"), "state": _state(each)} for each in found])
        return
    table = listing("workspace", "state", "failures", "url and why")
    for each in found:
        why = _local(each.open_until) or each.disabled_reason or ""
        table.add_row(each.workspace, _state(each), str(each.failures), shown(f"{each.url} {why}".strip()))
    out.print(table)


@webhooks.command()
@click.argument("workspace")
@click.argument("url")
def enable(workspace: str, url: str) -> None:
    """Send to URL of WORKSPACE again, after a 410 disabled it or failures opened its circuit."""
    checked_workspace(workspace)
    with access.database(Settings.from_env()) as engine:
        was = Webhooks(engine).enable(workspace, url)
    say(f"{url} was {_state(was)} and gets events again; `assistq webhooks replay --failed` sends what has failed")


@webhooks.command()
@click.argument("workspace")
def secret(workspace: str) -> None:
    """Print the secret (whsec_…) that WORKSPACE's webhooks are signed with; it is made when it is first asked for."""
    checked_workspace(workspace)
    with access.database(Settings.from_env()) as engine:
        click.echo(Records(engine).signing_secret(workspace))


@webhooks.command()
@click.argument("workspace")
@click.option(
    "--overlap-hours",
    type=click.FloatRange(0, _OVERLAP_AT_MOST_HOURS),
    default=OVERLAP_HOURS,
    show_default=True,
    help="How long webhooks are signed with the secret before, too.",
)
def rotate(workspace: str, *, overlap_hours: float) -> None:
    """Make a new secret for WORKSPACE and print it; a receiver with either verifies meanwhile."""
    checked_workspace(workspace)
    with access.database(Settings.from_env()) as engine:
        made = Webhooks(engine).rotate(workspace, now=datetime.now(UTC), overlap=timedelta(hours=overlap_hours))
    click.echo(made)
    say(f"webhooks are signed with the secret before, too, for {overlap_hours:g} h")


def _answer(delivery: Delivery) -> str:
    return delivery.last_error or ("" if delivery.last_status is None else f"HTTP {delivery.last_status}")


def _state(endpoint: WebhookEndpoint | None) -> str:
    if endpoint is None:
        return "healthy"
    if endpoint.disabled_at is not None:
        return "disabled"
    if endpoint.open_until is None:
        return "failing"
    return "open" if endpoint.open_until > datetime.now(UTC) else "probing"


def _how_it_is(endpoint: WebhookEndpoint | None) -> str:
    state = _state(endpoint)
    if endpoint is None:
        return state
    if endpoint.disabled_at is not None:
        return f"{state} since {_local(endpoint.disabled_at)}: {endpoint.disabled_reason}"
    until = f" until {_local(endpoint.open_until)}" if state == "open" else ""
    return f"{state}{until}, {endpoint.failures} failures in a row"


def _endpoint_json(delivery: Delivery, endpoint: WebhookEndpoint | None) -> dict[str, Any]:
    row = endpoint or WebhookEndpoint(workspace=delivery.workspace, url=delivery.url)
    told: dict[str, Any] = json.loads(row.model_dump_json())
    return {**told, "state": _state(endpoint)}


def _local(at: datetime | None) -> str:
    return "" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
