"""`assistq webhooks subscribe|unsubscribe|subscriptions`: who is told of batches that are made over OpenAI's API."""

from __future__ import annotations

import click

from producer.cli import access
from producer.cli.console import listing, out, print_json, say, shown
from producer.subscriptions import Subscriptions
from schemas.assistant import checked_workspace
from schemas.errors import InputError
from schemas.settings import Settings
from schemas.webhook import Form


@click.command()
@click.argument("workspace")
@click.argument("url")
@click.option(
    "--form",
    type=click.Choice([form.value for form in Form]),
    default=Form.OPENAI.value,
    show_default=True,
    help="Whose events it is sent, of these batches and of others that name URL as their webhook.",
)
def subscribe(workspace: str, url: str, *, form: str) -> None:
    """Tell URL of the end of every batch of WORKSPACE that is made over OpenAI's API (`/v1/batches`)."""
    with access.database(Settings.from_env()) as engine:
        Subscriptions(engine).subscribe(workspace, url, form=Form(form))
    say(
        f"{url} is told of batches in the form of {form}; `assistq webhooks secret {workspace}` prints what verifies it"
    )


@click.command()
@click.argument("workspace")
@click.argument("url")
def unsubscribe(workspace: str, url: str) -> None:
    """Tell URL of WORKSPACE's batches no more; what is on its way is sent."""
    checked_workspace(workspace)
    with access.database(Settings.from_env()) as engine:
        if not Subscriptions(engine).unsubscribe(workspace, url):
            raise InputError(
                f"workspace '{workspace}' has no subscription of {url}",
                mend="`assistq webhooks subscriptions` lists all",
            )
    say(f"{url} is told no more")


@click.command()
@click.argument("workspace", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def subscriptions(workspace: str | None, *, as_json: bool) -> None:
    """List who is told of batches that are made over OpenAI's API, of WORKSPACE or of all."""
    with access.database(Settings.from_env()) as engine:
        found = Subscriptions(engine).of(workspace)
    if as_json:
        print_json([each.model_dump(mode="json") for each in found])
        return
    table = listing("workspace", "form", "url")
    for each in found:
        table.add_row(each.workspace, each.form, shown(each.url))
    out.print(table)
