"""All configuration, read once from the environment and checked whole before anything starts."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.assistant import ProviderKind
from schemas.errors import InputError
from schemas.lane_limits import LaneLimits, Shape

DEFAULT_LOCAL_MODEL = "smollm2-135m"


class Settings(BaseSettings):
    """The `ASSISTQ_…` variables, frozen.

    `rpm`, `tpm`, `burst_s`, `shape`, `max_concurrency` and `headroom` are the limits of lanes
    (lane_limits.py) of which `lanes`, a YAML file (lane_config.py), says nothing. No Redis
    URL: an embedded Valkey under `data_dir`. No database URL: SQLite there. No provider URL:
    the local model, if its extra is installed. `threads` is how many jobs each of the
    `processes` runs at once.

    `private_network_workspaces` lists, with commas, the workspaces whose HTTP tools and webhooks
    may reach private, loopback and link-local addresses. A job that was running when its worker died
    `max_kills` times ends as failed. A shutdown gives calls in flight `shutdown_grace_s` seconds. What
    ended longer than `retention_days` ago is deleted; None keeps it for ever. The secrets that tools name are
    variables of their own, `ASSISTQ_SECRET_<NAME>` (tool_secrets).

    The gateway listens on `http_host` and `http_port` (0: any that is free). A caller waits for a job's end
    for `http_timeout_s` at most; a client may pause for `http_patience_s` while it sends a request, and for
    `http_stalled_s` while it takes the answer, before it counts as gone. Bodies have at most
    `http_max_body_bytes`, uploaded files `http_max_upload_bytes`. `http_cors_origins` lists, with commas, the
    web origins that may call it.
    """

    model_config = SettingsConfigDict(env_prefix="ASSISTQ_", frozen=True, extra="ignore", env_ignore_empty=True)

    redis_url: SecretStr | None = None
    database_url: SecretStr | None = None
    provider_base_url: str | None = None
    provider_api_key: SecretStr | None = None
    langdock_base_url: str = "https://api.langdock.com"
    langdock_api_key: SecretStr | None = None
    langdock_api: Literal["assistant", "agent"] = "assistant"
    langtail_base_url: str = "https://api.langtail.com"
    langtail_api_key: SecretStr | None = None
    agent_base_url: str | None = None
    agent_api_key: SecretStr | None = None
    model: str | None = None
    private_network_workspaces: str = ""
    rpm: int = Field(default=500, ge=1)
    tpm: int = Field(default=60_000, ge=1)
    burst_s: float = Field(default=1.0, gt=0, le=60)
    shape: Shape = "smooth"
    max_concurrency: int | None = Field(default=None, ge=1)
    headroom: float = Field(default=0.0, ge=0, lt=1, allow_inf_nan=False)
    lanes: Path | None = None
    processes: int | None = Field(default=None, ge=1, le=256)
    threads: int | None = Field(default=None, ge=1, le=4096)
    http_host: str = "127.0.0.1"
    http_port: int = Field(default=8700, ge=0, le=65_535)
    http_timeout_s: float = Field(default=600.0, gt=0, le=86_400, allow_inf_nan=False)
    http_patience_s: float = Field(default=20.0, gt=0, le=3600, allow_inf_nan=False)
    http_stalled_s: float = Field(default=60.0, gt=0, le=86_400, allow_inf_nan=False)
    http_max_body_bytes: int = Field(default=16 * 1024 * 1024, ge=1024)
    http_max_upload_bytes: int = Field(default=512 * 1024 * 1024, ge=1024)
    http_cors_origins: str = ""
    metrics_port: int = Field(default=9191, ge=0, le=65_535)
    data_dir: Path = Path(".assistq")
    provider_timeout_s: float = Field(default=120.0, gt=0)
    max_attempts: int = Field(default=5, ge=1, le=100)
    max_kills: int = Field(default=3, ge=1, le=100)
    shutdown_grace_s: float = Field(default=30.0, gt=0, le=3600, allow_inf_nan=False)
    retention_days: float | None = Field(default=None, ge=1, le=36_500, allow_inf_nan=False)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("data_dir", "lanes")
    @classmethod
    def _path_is_absolute(cls, path: Path | None) -> Path | None:
        return path.expanduser().absolute() if path else None

    @field_validator("redis_url")
    @classmethod
    def _redis_url_has_a_scheme(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        return url

    @field_validator("database_url")
    @classmethod
    def _database_is_of_a_known_kind(cls, url: SecretStr | None) -> SecretStr | None:
        kinds = ("postgresql://", "postgres://", "postgresql+psycopg://", "sqlite:///")
        if url is not None and not url.get_secret_value().startswith(kinds):
            raise ValueError("must begin with postgresql:// or sqlite:///")
        return url

    @field_validator("provider_base_url", "langdock_base_url", "langtail_base_url", "agent_base_url")
    @classmethod
    def _base_url_is_http(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if not url.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        if not _names_a_host(url):
            raise ValueError("must name a host, and a port of 1 to 65535 if any")
        return url.rstrip("/")

    @field_validator("provider_api_key", "langdock_api_key", "langtail_api_key", "agent_api_key")
    @classmethod
    def _key_fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        if key is None:
            return None
        # A key that was read from a file often ends with a line break.
        value = key.get_secret_value().strip()
        if not value.isascii() or not value.isprintable() or " " in value:
            raise ValueError("must be printable ASCII without spaces, or it cannot be sent")
        return SecretStr(value) if value else None

    @classmethod
    def from_env(cls) -> Settings:
        """Read the environment; a wrong value is one InputError that names its variable."""
        try:
            return cls()
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            name = "ASSISTQ_" + "_".join(str(part) for part in first["loc"]).upper()
            what = first["msg"].removeprefix("Value error, ")
            raise InputError(f"{name}: {what}", mend=f"set {name} to a valid value or unset it") from exc

    @staticmethod
    def tool_secrets() -> dict[str, str]:
        """Return the secrets that tools may name, by their names in lower case."""
        prefix = "ASSISTQ_SECRET_"
        return {
            name.removeprefix(prefix).lower(): value for name, value in os.environ.items() if name.startswith(prefix)
        }

    def hosted_base_url(self, kind: ProviderKind) -> str | None:
        """Return where the service that hosts assistants is, if it is configured; None for `openai`."""
        match kind:
            case "langdock":
                return self.langdock_base_url if self.langdock_api_key else None
            case "langtail":
                return self.langtail_base_url if self.langtail_api_key else None
            case "agent":
                return self.agent_base_url
            case "openai":
                return None

    @property
    def shutdown_within_s(self) -> float:
        """Return by when a worker that was told to end has done so, all its processes, also if something hangs."""
        return self.shutdown_grace_s + 10.0

    @property
    def provider_configured(self) -> bool:
        """Return whether any provider, native or hosting assistants, can be asked."""
        return any((self.provider_base_url, self.langdock_api_key, self.langtail_api_key, self.agent_base_url))

    @property
    def private_networks_allowed(self) -> frozenset[str]:
        """Return the workspaces whose tools may reach private addresses."""
        return frozenset(name.strip() for name in self.private_network_workspaces.split(",") if name.strip())

    @property
    def lane_limits(self) -> LaneLimits:
        """Return the limits of lanes that nothing else is said of."""
        return LaneLimits(
            rpm=self.rpm,
            tpm=self.tpm,
            burst_s=self.burst_s,
            shape=self.shape,
            max_concurrency=self.max_concurrency,
            headroom=self.headroom,
        )

    @property
    def embedded_redis_url(self) -> str:
        """Return the URL of the embedded Valkey's socket.

        It lies in the system's temporary directory, named after the data directory, because
        a socket's path is limited to some 100 bytes and a data directory's is not.
        """
        digest = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:12]
        return f"unix://{Path(tempfile.gettempdir()) / f'assistq-{os.getuid()}-{digest}' / 'valkey.sock'}"

    @property
    def effective_redis_url(self) -> str:
        """Return the configured Redis, else the embedded one."""
        return self.redis_url.get_secret_value() if self.redis_url else self.embedded_redis_url

    @property
    def effective_database_url(self) -> str:
        """Return the configured database as an SQLAlchemy URL, else SQLite in the data directory."""
        if self.database_url is None:
            return f"sqlite:///{self.data_dir / 'assistq.db'}"
        url = self.database_url.get_secret_value()
        for prefix in ("postgresql://", "postgres://"):
            if url.startswith(prefix):
                return "postgresql+psycopg://" + url.removeprefix(prefix)
        return url


def _names_a_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:
        return False
