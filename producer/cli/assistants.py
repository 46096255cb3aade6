"""`assistq assistants`: stored assistants, from YAML."""

from __future__ import annotations

import difflib
from pathlib import Path

import click
import yaml

from producer.assistants import Assistants
from producer.bulk import assistant_file
from producer.cli import access
from producer.cli.console import listing, out, print_json
from schemas.assistant import AssistantConfig, checked_environment
from schemas.settings import Settings

# As `run` says that not all is well.
EXIT_DIFFERENT = 3


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


@assistants.command()
@click.argument("address")
@click.option("--environment", required=True, help="The environment to point, made if it is new.")
@click.option("--version", type=click.IntRange(min=1), required=True, help="The version to point it at.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def deploy(address: str, *, environment: str, version: int, as_json: bool) -> None:
    """Point an environment of the assistant at ADDRESS at one of its versions."""
    with access.database(Settings.from_env()) as engine:
        before = Assistants(engine).deploy(address, environment=checked_environment(environment), version=version)
    if as_json:
        print_json({"assistant": address, "environment": environment, "version": version, "before": before})
        return
    was = "new" if before is None else "unchanged" if before == version else f"before version {before}"
    out.print(f"{address} in {environment}: version {version}, {was}")


@assistants.command()
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
def diff(old: str, new: str) -> None:
    """Print how two configurations differ; exit status 3 if they do.

    OLD and NEW are each a file, or ADDRESS@VERSION, ADDRESS@ENVIRONMENT or ADDRESS.
    """
    with access.database(Settings.from_env()) as engine:
        before, after = (_as_yaml(_named(name, Assistants(engine))).splitlines(keepends=True) for name in (old, new))
    lines = list(difflib.unified_diff(before, after, fromfile=old, tofile=new))
    click.echo("".join(lines), nl=False)
    if lines:
        raise SystemExit(EXIT_DIFFERENT)


def _named(name: str, stored: Assistants) -> AssistantConfig:
    if Path(name).suffix.lower() in (".yaml", ".yml"):
        return assistant_file.load(Path(name))
    address, _, which = name.partition("@")
    if which.isdigit():
        return stored.config(address, version=int(which))[0]
    return stored.config(address, environment=which or "production")[0]


def _as_yaml(config: AssistantConfig) -> str:
    content = config.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"environment"})
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
