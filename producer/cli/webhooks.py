"""`assistq webhooks`: what was told to whom, and the secret to verify it with."""

from __future__ import annotations

import click

from producer.cli import access
from producer.cli.console import listing, out, print_json, shown
from producer.records import Records
from schemas.assistant import checked_workspace
from schemas.settings import Settings


@click.group()
def webhooks() -> None:
    """Look at webhook deliveries."""


@webhooks.command(name="list")
@click.option("--batch", "batch_id", help="Only the deliveries of this batch.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(*, batch_id: str | None, as_json: bool) -> None:
    """List the newest deliveries."""
    with access.database(Settings.from_env()) as engine:
        deliveries = Records(engine).deliveries(batch_id=batch_id)
    if as_json:
        print_json([each.model_dump(mode="json", exclude={"body"}) for each in deliveries])
        return
    table = listing("id", "state", "attempts", "answer and url")
    for each in deliveries:
        answer = each.last_error or ("" if each.last_status is None else f"HTTP {each.last_status}")
        table.add_row(each.id, each.state, str(each.attempts), shown(f"{answer} {each.url}".strip()))
    out.print(table)


@webhooks.command()
@click.argument("workspace")
def secret(workspace: str) -> None:
    """Print the secret (whsec_…) that WORKSPACE's webhooks are signed with; it is made when it is first asked for."""
    checked_workspace(workspace)
    with access.database(Settings.from_env()) as engine:
        click.echo(Records(engine).signing_secret(workspace))
