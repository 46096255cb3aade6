"""Where everything is in a run's directory: what each process needs to know, as a file."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from ops.faults.script import Kind

# Loads that can be left out, to narrow a breach down; the auditors follow what was loaded.
JOB_WEBHOOKS = True
RETRIES = True

WORKSPACES = ("north", "south", "east")
MODELS = {Kind.TEXT: "m-small", Kind.OBJECT: "m-large", Kind.TOOLS: "m-large"}
HOST = "127.0.0.1"


class Stage(BaseModel):
    """One run's directory, ports and seed."""

    model_config = ConfigDict(frozen=True)

    directory: Path
    seed: int
    provider_port: int
    tools_port: int
    receiver_port: int
    database_url: str
    secrets: dict[str, str] = {}
    job_webhooks: bool = JOB_WEBHOOKS
    retries: bool = RETRIES

    @classmethod
    def load(cls, directory: str) -> Self:
        """Read the file that `save` wrote."""
        return cls.model_validate_json((Path(directory) / "stage.json").read_text("utf-8"))

    def save(self) -> None:
        """Write it for the processes of the run."""
        (self.directory / "stage.json").write_text(self.model_dump_json(), "utf-8")

    @property
    def redis_url(self) -> str:
        """Return where the queue is."""
        return f"unix://{self.directory / 'valkey' / 's'}"

    @property
    def sessions_file(self) -> Path:
        """Return the file that lists the workers' sessions."""
        return self.directory / "sessions"

    @property
    def finish_file(self) -> Path:
        """Return the file whose being there tells the producer to come to an end."""
        return self.directory / "finish"

    def log_of(self, part: str) -> Path:
        """Return where a part records what happened."""
        return self.directory / f"{part}.jsonl"

    def output_of(self, part: str) -> Path:
        """Return where a part's output goes."""
        return self.directory / f"{part}.log"


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at now."""
    listeners = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
