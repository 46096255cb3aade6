"""`assistq spend`: what workspaces spent, and their caps."""

from __future__ import annotations

import click

from producer.cli import access
from producer.cli.console import listing, out, print_json, shown
from schemas.errors import InputError
from schemas.money import amount, nanos
from schemas.settings import Settings


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def spend(*, as_json: bool) -> None:
    """List what each workspace spent in each period (UTC), in the currency of the prices in the lanes file."""
    with access.running_queue(Settings.from_env()) as producer:
        found = producer.accounts()
    if as_json:
        print_json([account.model_dump(mode="json") for account in found])
        return
    table = listing("workspace", "period", "spent", "reserved", "cap")
    for account in found:
        cap = "" if account.cap_nano is None else amount(account.cap_nano)
        table.add_row(
            shown(account.workspace), account.period, amount(account.spent_nano), amount(account.reserved_nano), cap
        )
    out.print(table)


def _checked(_context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse what is no amount before anything is done."""
    try:
        if value is not None:
            nanos(value)
    except InputError as exc:
        raise click.BadParameter(f"{exc.what}; {exc.mend}", param=parameter) from exc
    return value


cap_option = click.option(
    "--spend-cap",
    metavar="AMOUNT",
    callback=_checked,
    help="What the batch may spend, in the currency of the prices in the lanes file; other rows end as over_budget.",
)
