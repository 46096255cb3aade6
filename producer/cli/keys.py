"""`assistq keys`: who may use the HTTP gateway, and what for."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import redis
from sqlalchemy import Engine

from producer.assistants import Assistants
from producer.cli import access
from producer.cli.console import listing, out, print_json, say, shown
from producer.cli.duration import Duration
from producer.embedded import valkey
from producer.gateway.checked_keys import KEPT_S
from producer.gateway.keys import ApiKeys, Scope, state_of
from schemas import names
from schemas.settings import Settings
from schemas.tables import ApiKey

_REDIS_TIMEOUT_S = 2.0
_RPM_AT_MOST = 1_000_000


@click.group()
def keys() -> None:
    """Make, list, share and revoke the keys to the HTTP gateway."""


@keys.command()
@click.argument("workspace")
@click.option("--name", default="", help="What or whom the key is for.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="What it may do; may be repeated. run: calls, jobs, batches, uploads; read: look at them; assistants: write "
    "these; webhooks: endpoints and deliveries. [default: all]",
)
@click.option(
    "--assistant",
    "addresses",
    metavar="ADDRESS",
    multiple=True,
    help="Share only this assistant with it; may be repeated. [default: all of the workspace]",
)
@click.option("--rpm", type=click.IntRange(1, _RPM_AT_MOST), help="How many requests a minute. [default: no limit]")
@click.option("--expires-in", type=Duration(), metavar="TIME", help="Until when: 6h, 30d. [default: no end]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def create(
    workspace: str,
    *,
    name: str,
    scopes: tuple[str, ...],
    addresses: tuple[str, ...],
    rpm: int | None,
    expires_in: timedelta | None,
    as_json: bool,
) -> None:
    """Make a key of WORKSPACE and print it, this once: only a hash of it is kept."""
    with access.database(Settings.from_env()) as engine:
        made = ApiKeys(engine).create(
            workspace,
            name=name,
            scopes=[Scope(scope) for scope in dict.fromkeys(scopes)] or tuple(Scope),
            assistants=addresses or None,
            rpm=rpm,
            expires_at=None if expires_in is None else datetime.now(UTC) + expires_in,
        )
        _tell_unknown(engine, addresses)
    if as_json:
        print_json({"key": made.text, **_as_json(made.key)})
        return
    click.echo(made.text)
    say(f"key {made.key.id} of workspace {workspace}; it is not shown again")


@keys.command(name="list")
@click.argument("workspace", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(*, workspace: str | None, as_json: bool) -> None:
    """List the keys of WORKSPACE, or all."""
    with access.database(Settings.from_env()) as engine:
        listed = ApiKeys(engine).all(workspace)
    if as_json:
        print_json([_as_json(each) for each in listed])
        return
    table = listing("id", "workspace", "state", "scopes", "rpm", "expires", "assistants", "name")
    for each in listed:
        table.add_row(
            each.id,
            each.workspace,
            _state(each),
            ",".join(each.scopes),
            "" if each.rpm is None else str(each.rpm),
            "" if each.expires_at is None else f"{each.expires_at.astimezone():%Y-%m-%d %H:%M}",
            "all" if each.assistants is None else ", ".join(each.assistants) or "none",
            shown(each.name),
        )
    out.print(table)


@keys.command()
@click.argument("key_id", metavar="KEY_ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def revoke(key_id: str, *, as_json: bool) -> None:
    """Let the key KEY_ID open nothing any more. What it let in before goes on."""
    settings = Settings.from_env()
    with access.database(settings) as engine:
        _tell_change(ApiKeys(engine).revoke(key_id), settings=settings, as_json=as_json)


@keys.command()
@click.argument("key_id", metavar="KEY_ID")
@click.argument("addresses", metavar="ADDRESS…", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def share(key_id: str, addresses: tuple[str, ...], *, as_json: bool) -> None:
    """Let the key KEY_ID use these assistants too."""
    settings = Settings.from_env()
    with access.database(settings) as engine:
        key = ApiKeys(engine).share(key_id, addresses)
        _tell_unknown(engine, addresses)
        _tell_change(key, settings=settings, as_json=as_json)


@keys.command()
@click.argument("key_id", metavar="KEY_ID")
@click.argument("addresses", metavar="ADDRESS…", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def unshare(key_id: str, addresses: tuple[str, ...], *, as_json: bool) -> None:
    """Let the key KEY_ID use these assistants no more."""
    settings = Settings.from_env()
    with access.database(settings) as engine:
        _tell_change(ApiKeys(engine).unshare(key_id, addresses), settings=settings, as_json=as_json)


def _tell_change(key: ApiKey, *, settings: Settings, as_json: bool) -> None:
    when = "at once" if _tell_gateways(settings) else f"within {KEPT_S:g} s"
    if as_json:
        print_json(_as_json(key))
    else:
        used = "all assistants" if key.assistants is None else ", ".join(key.assistants) or "no assistants"
        state = _state(key)
        say(f"key {key.id} of workspace {key.workspace} is {state}" + (f" for {used}" if state == "active" else ""))
    say(f"running gateways know {when}")


def _tell_gateways(settings: Settings) -> bool:
    """Let running gateways forget what they knew of keys; return whether Redis took the word."""
    url = valkey.running_url(settings)
    if url is None:
        return False
    try:
        with redis.Redis.from_url(
            url, socket_timeout=_REDIS_TIMEOUT_S, socket_connect_timeout=_REDIS_TIMEOUT_S
        ) as connection:
            connection.publish(names.KEYS_CHANNEL, "")
    except redis.RedisError:
        return False
    return True


def _tell_unknown(engine: Engine, addresses: Iterable[str]) -> None:
    stored = {each.address for each in Assistants(engine).all()} if addresses else set()
    for address in addresses:
        if address not in stored:
            say(f"{address} is not stored yet: the key may use it once it is")


def _state(key: ApiKey) -> str:
    return state_of(key, now=datetime.now(UTC)).value


def _as_json(key: ApiKey) -> dict[str, Any]:
    return {**key.model_dump(mode="json", exclude={"secret_hash"}), "state": _state(key)}
