"""`assistq up`: the whole system on this machine."""

from __future__ import annotations

import time
from pathlib import Path

import click

from producer.cli import access
from producer.cli.console import err, say
from producer.embedded import procfile
from producer.embedded.supervisor import prefixed_output
from producer.embedded.system import running
from schemas.lane_config import LaneConfig
from schemas.settings import Settings

_LOOK_EVERY_S = 1.0


@click.command()
def up() -> None:
    """Run every process type of the Procfile until Ctrl-C, each started again when it dies.

    Starts a queue and the local model where no URL is set. Other process managers can run
    the same Procfile when ASSISTQ_REDIS_URL, ASSISTQ_DATABASE_URL and
    ASSISTQ_PROVIDER_BASE_URL are set.
    """
    settings = Settings.from_env()
    lanes = LaneConfig.load(settings)
    found = procfile.find(Path.cwd())
    with access.database(settings):
        pass  # an unreachable database is one clear error here, not one in each process
    output = prefixed_output(err, names=list(found.commands))
    with running(
        settings,
        commands=found.commands,
        say=say,
        output=output,
        needs_model=not settings.provider_configured or settings.provider_base_url is not None,
    ) as system:
        say(f"up: {', '.join(found.commands)} (Procfile: {found.source})")
        say(f"  workers   {system.processes} processes, {system.in_flight} calls in flight each")
        # Configured URLs may hold passwords.
        database = "configured by ASSISTQ_DATABASE_URL" if settings.database_url else settings.effective_database_url
        say(f"  queue     {'configured by ASSISTQ_REDIS_URL' if settings.redis_url else system.redis_url}")
        say(f"  database  {database}")
        provider = system.endpoint.base_url or "services that host assistants"
        say(f"  provider  {provider}, model {system.endpoint.model or 'as each assistant says'}")
        limits = f"{settings.rpm:,} requests and {settings.tpm:,} tokens a minute for each lane"
        say(f"  limits    {limits}" + (f", unless {lanes.file} says otherwise" if lanes.file else ""))
        if settings.http_port and any("producer.gateway" in command for command in found.commands.values()):
            say(f"  gateway   http://{settings.http_host}:{settings.http_port} (keys: `assistq keys create WORKSPACE`)")
        say(f"  metrics   http://127.0.0.1:{settings.metrics_port}/metrics")
        try:
            while True:
                time.sleep(_LOOK_EVERY_S)
        finally:
            say("stopping: calls in flight are finished first")
