"""The settings are read once, checked whole, and wrong ones named."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from schemas import InputError, Settings
from schemas.lane_limits import LaneLimits


def read(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(f"ASSISTQ_{name}", value)
    return Settings.from_env()


def test_nothing_set_is_a_whole_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ASSISTQ_DATA_DIR")
    settings = Settings.from_env()
    assert (settings.rpm, settings.tpm, settings.burst_s, settings.max_attempts) == (500, 60_000, 1.0, 5)
    assert settings.data_dir == tmp_path / ".assistq"
    assert settings.effective_database_url == f"sqlite:///{tmp_path}/.assistq/assistq.db"
    assert settings.effective_redis_url == settings.embedded_redis_url
    assert (settings.http_host, settings.http_port, settings.metrics_port) == ("127.0.0.1", 8700, 9191)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RPM", "0"),
        ("RPM", "many"),
        ("RPM", "1.5"),
        ("TPM", "-1"),
        ("BURST_S", "0"),
        ("BURST_S", "61"),
        ("BURST_S", "nan"),
        ("SHAPE", "round"),
        ("MAX_CONCURRENCY", "0"),
        ("MAX_CONCURRENCY", "all"),
        ("HEADROOM", "1"),
        ("HEADROOM", "-0.1"),
        ("HEADROOM", "nan"),
        ("PROCESSES", "0"),
        ("PROCESSES", "1000"),
        ("THREADS", "0"),
        ("METRICS_PORT", "65536"),
        ("HTTP_PORT", "-1"),
        ("MAX_ATTEMPTS", "0"),
        ("MAX_ATTEMPTS", "100000"),
        ("PROVIDER_TIMEOUT_S", "0"),
        ("LOG_LEVEL", "loud"),
        ("PROVIDER_BASE_URL", "localhost:8000/v1"),
        ("PROVIDER_BASE_URL", "ftp://host/v1"),
        ("PROVIDER_BASE_URL", "http://"),
        ("PROVIDER_BASE_URL", "http://host:99999/v1"),
        ("PROVIDER_BASE_URL", "http://host:0/v1"),
        ("PROVIDER_BASE_URL", "http://ho st/v1"),
        ("PROVIDER_BASE_URL", "http://[::1/v1"),
        ("PROVIDER_API_KEY", "sk-1 sk-2"),
        ("PROVIDER_API_KEY", "sk-ä"),
        ("PROVIDER_API_KEY", "sk-1\nsk-2"),
        ("REDIS_URL", "localhost:6379"),
    ],
)
def test_a_wrong_value_is_refused_by_its_variables_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    with pytest.raises(InputError) as caught:
        read(monkeypatch, **{name: value})
    assert str(caught.value).startswith(f"ASSISTQ_{name}: ")
    assert f"set ASSISTQ_{name} to a valid value or unset it" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["REDIS_URL", "DATABASE_URL", "PROVIDER_API_KEY", "PROVIDER_BASE_URL", "MODEL", "RPM"])
def test_an_empty_value_is_none(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert read(monkeypatch, **{name: ""}) == Settings.from_env()


@pytest.mark.parametrize(
    ("url", "effective"),
    [
        ("postgres://me:pw@host/db", "postgresql+psycopg://me:pw@host/db"),
        ("postgresql://host/db?sslmode=require", "postgresql+psycopg://host/db?sslmode=require"),
        ("postgresql+psycopg://host/db", "postgresql+psycopg://host/db"),
        ("sqlite:////var/lib/a.db", "sqlite:////var/lib/a.db"),
    ],
)
def test_a_database_url_is_taken_as_hosts_write_it(monkeypatch: pytest.MonkeyPatch, url: str, effective: str) -> None:
    assert read(monkeypatch, DATABASE_URL=url).effective_database_url == effective


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://api.example.com/v1", "https://api.example.com/v1"),
        ("https://api.example.com/v1/", "https://api.example.com/v1"),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("https://me:pw@host/v1", "https://me:pw@host/v1"),
    ],
)
def test_a_base_url_is_kept_without_its_last_slash(monkeypatch: pytest.MonkeyPatch, url: str, kept: str) -> None:
    assert read(monkeypatch, PROVIDER_BASE_URL=url).provider_base_url == kept


@pytest.mark.parametrize("value", ["sk-1", "sk-1\n", "  sk-1\r\n"])
def test_a_key_is_taken_without_the_white_space_of_its_file(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    key = read(monkeypatch, PROVIDER_API_KEY=value).provider_api_key
    assert key is not None
    assert key.get_secret_value() == "sk-1"


def test_a_key_of_white_space_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, PROVIDER_API_KEY=" \n").provider_api_key is None


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(
        monkeypatch,
        PROVIDER_API_KEY="sk-CANARY",
        REDIS_URL="redis://:CANARY@host/0",
        DATABASE_URL="postgresql://me:CANARY@host/db",
    )
    assert "CANARY" not in f"{settings!r} {settings} {settings.model_dump_json()}"
    assert settings.effective_redis_url == "redis://:CANARY@host/0"


def test_a_refused_secret_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError) as caught:
        read(monkeypatch, PROVIDER_API_KEY="sk-CANARY two")
    assert "CANARY" not in str(caught.value)


def test_the_limits_of_lanes_are_what_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.from_env().lane_limits == LaneLimits()
    settings = read(
        monkeypatch, RPM="3000", TPM="360000", BURST_S="2", SHAPE="bucket", MAX_CONCURRENCY="64", HEADROOM="0.05"
    )
    assert settings.lane_limits == LaneLimits(
        rpm=3000, tpm=360_000, burst_s=2, shape="bucket", max_concurrency=64, headroom=0.05
    )


@pytest.mark.parametrize("shape", ["smooth", "bucket", "window"])
def test_a_shape_is_one_of_three(monkeypatch: pytest.MonkeyPatch, shape: str) -> None:
    assert read(monkeypatch, SHAPE=shape).shape == shape


def test_the_file_of_lanes_is_meant_from_where_one_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert read(monkeypatch, LANES="conf/lanes.yaml").lanes == tmp_path / "conf" / "lanes.yaml"


def test_they_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.from_env()
    with pytest.raises(ValidationError):
        settings.rpm = 1  # type: ignore[misc]


def test_two_data_directories_have_two_sockets_with_short_paths(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = read(monkeypatch, DATA_DIR=str(tmp_path / ("x" * 200))).embedded_redis_url
    other = read(monkeypatch, DATA_DIR=str(tmp_path / ("y" * 200))).embedded_redis_url
    assert one != other
    assert one.startswith("unix://")
    assert len(one.removeprefix("unix://")) < 100


def test_a_data_directory_may_begin_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(monkeypatch, DATA_DIR="~/aq").data_dir == tmp_path / "aq"


def test_who_operates_it_finds_each_setting_in_the_table() -> None:
    operating = (Path(__file__).parents[2] / "ops" / "operating.md").read_text("utf-8")
    assert {name for name in Settings.model_fields if f"`ASSISTQ_{name.upper()}`" not in operating} == set()
