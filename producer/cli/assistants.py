"""`assistq assistants`: stored assistants, from YAML."""

from __future__ import annotations

from pathlib import Path

import click
import yaml

from producer.assistants import Assistants
from producer.bulk import assistant_file
from producer.cli import access
from producer.cli.console import listing, out, print_json
from schemas.settings import Settings


@click.group()
def assistants() -> None:
    """Store assistants and look at them."""


@assistants.command()
@click.argument("files", metavar="FILE…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def apply(files: tuple[Path, ...], *, as_json: bool) -> None:
    """Store each FILE as a version of its assistant, and point its environment at it.

    A file that says nothing new changes nothing.
    """
    # All files are read before the first is stored: a mistake in one leaves everything as it was.
    configs = [assistant_file.load(path) for path in files]
    with access.database(Settings.from_env()) as engine:
        applied = [Assistants(engine).apply(config) for config in configs]
    if as_json:
        print_json(
            [
                {
                    "assistant": each.address,
                    "environment": each.environment,
                    "version": each.version,
                    "new_version": each.new_version,
                    "changed": each.changed,
                }
                for each in applied
            ]
        )
        return
    for each in applied:
        what = "unchanged"
        if each.changed:
            kind = "new version" if each.new_version else "version"
            before = f", before version {each.moved_from}" if each.moved_from else ""
            what = f"{kind} {each.version}{before}"
        out.print(f"{each.address} in {each.environment}: {what}")


@assistants.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(*, as_json: bool) -> None:
    """List the assistants, their newest versions and their environments."""
    with access.database(Settings.from_env()) as engine:
        listed = Assistants(engine).all()
    if as_json:
        print_json(
            [{"assistant": each.address, "newest": each.newest, "environments": each.environments} for each in listed]
        )
        return
    table = listing("assistant", "newest version", "environments")
    for each in listed:
        pointers = ", ".join(f"{name} → {version}" for name, version in sorted(each.environments.items()))
        table.add_row(each.address, str(each.newest), pointers)
    out.print(table)


@assistants.command()
@click.argument("address")
@click.option("--environment", default="production", show_default=True, help="Which environment's version to show.")
@click.option("--version", type=click.IntRange(min=1), help="Show this version instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of YAML.")
def show(address: str, *, environment: str, version: int | None, as_json: bool) -> None:
    """Print one version of the assistant at ADDRESS, as a file that `apply` takes."""
    with access.database(Settings.from_env()) as engine:
        config, _number = Assistants(engine).config(address, environment=environment, version=version)
    content = config.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if as_json:
        print_json(content)
    else:
        click.echo(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), nl=False)
