"""Logs are JSON lines, from every library and process, and hold no secret."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from schemas.logs import MASK, MAX_FIELD_CHARS, SecretMask
from schemas.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
CANARY = "CANARYvalue"
KEY = f"{CANARY}-key-7b!'\"\\"
SECRETS = {
    "ASSISTQ_PROVIDER_API_KEY": KEY,
    "ASSISTQ_REDIS_URL": f"redis://:{CANARY}%2Fredis@127.0.0.1:6399/0",
    "ASSISTQ_DATABASE_URL": f"postgresql://assistq:{CANARY}sql@127.0.0.1:5439/assistq",
    "ASSISTQ_PROVIDER_BASE_URL": f"https://me:{CANARY}base@127.0.0.1/v1",
}


def lines_of(script: str, **settings: str) -> list[dict[str, Any]]:
    """Run the script after `configure()`; return its stderr, each line parsed."""
    prelude = "from schemas.settings import Settings\nfrom schemas import logs\nlogs.configure(Settings.from_env())\n"
    ended = subprocess.run(
        [sys.executable, "-c", prelude + script],
        env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stdout == ""
    return [json.loads(line) for line in ended.stderr.splitlines()]


def test_a_line_has_time_level_event_and_then_its_fields() -> None:
    (line,) = lines_of("import structlog\nstructlog.get_logger('assistq').info('job_ended', job_id='j1', n=3)")
    assert list(line)[:3] == ["ts", "level", "event"]
    assert line["ts"].endswith("Z")
    assert (line["level"], line["event"], line["job_id"], line["n"]) == ("info", "job_ended", "j1", 3)


def test_records_of_libraries_and_warnings_are_lines_of_the_same_form() -> None:
    lines = lines_of(
        "import logging, warnings\n"
        "logging.getLogger('dramatiq.worker.X').warning('took %s', 'long')\n"
        "logging.getLogger('redis').error('two\\nlines')\n"
        "warnings.warn('old', DeprecationWarning)\n"
    )
    assert [line["event"] for line in lines[:2]] == ["took long", "two\nlines"]
    assert lines[0]["logger"] == "dramatiq.worker.X"
    assert lines[2]["logger"] == "py.warnings"


def test_the_level_of_the_settings_holds() -> None:
    script = (
        "import logging, structlog\n"
        "for level in ('debug', 'info', 'warning'):\n"
        "    getattr(logging.getLogger('x'), level)(level)\n"
        "    getattr(structlog.get_logger('y'), level)(level)\n"
    )
    assert [line["event"] for line in lines_of(script, ASSISTQ_LOG_LEVEL="WARNING")] == ["warning"] * 2
    assert len(lines_of(script, ASSISTQ_LOG_LEVEL="DEBUG")) == 6


def test_httpx_tells_no_request_lines() -> None:
    lines = lines_of(
        "import logging\n"
        "logging.getLogger('httpx').info('HTTP Request: POST https://x/?key=1')\n"
        "logging.getLogger('httpcore.http11').debug('send_request_headers')\n"
        "logging.getLogger('httpx').warning('this is one')\n",
        ASSISTQ_LOG_LEVEL="DEBUG",
    )
    assert [line["event"] for line in lines] == ["this is one"]


def test_an_exception_is_one_line_with_its_traceback() -> None:
    lines = lines_of(
        "import logging, structlog, threading\n"
        "try:\n    raise ValueError('first') from KeyError('second')\n"
        "except ValueError:\n"
        "    structlog.get_logger().exception('a')\n    logging.getLogger('b').exception('b')\n"
        "def fail(): raise ValueError('first in thread')\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join()\n"
        "raise ValueError('first uncaught')\n"
    )
    assert [line["event"] for line in lines] == ["a", "b", "uncaught exception in a thread", "uncaught exception"]
    for line in lines:
        assert "ValueError: first" in line["exception"]
        assert "Traceback" in line["exception"]


def test_every_event_of_the_core_is_a_line_with_its_ids_and_level() -> None:
    lines = lines_of(
        "from tests.unit.test_metrics import ONE_OF_EACH\n"
        "from worker.logs import LogSubscriber\nsubscriber = LogSubscriber()\n"
        "for event in ONE_OF_EACH: subscriber.on_event(event)\n",
        ASSISTQ_LOG_LEVEL="DEBUG",
    )
    assert {line["event"]: line["level"] for line in lines} == {
        "job_started": "info",
        "old_rows_pruned": "info",
        "limiter_waited": "debug",
        "provider_called": "info",
        "job_snoozed": "info",
        "tool_called": "warning",
        "tool_crashed": "error",
        "job_ended": "info",
        "job_crashed": "error",
        "batch_ended": "info",
        "jobs_recovered": "warning",
        "stale_work_refused": "warning",
        "webhook_attempted": "info",
        "service_fault": "warning",
    }
    by_event = {line["event"]: line for line in lines}
    assert by_event["job_ended"]["job_id"] == "j"
    assert by_event["job_ended"]["batch_id"] == "b"
    assert by_event["job_ended"]["status"] == "succeeded"
    assert by_event["job_ended"]["prompt_tokens"] == 70
    assert by_event["provider_called"]["lane"] == "demo/openai/m1"
    assert by_event["job_crashed"]["exception"] == "RuntimeError: no"


def test_no_canary_gets_into_the_logs() -> None:
    lines = lines_of(
        "import logging, structlog, os, threading, urllib.parse\n"
        "log = structlog.get_logger('app')\n"
        "settings = Settings.from_env()\n"
        "class Thing:\n    def __repr__(self): return 'Thing ' + os.environ['ASSISTQ_PROVIDER_API_KEY']\n"
        f"for name in {list(SECRETS)}:\n"
        "    value = os.environ[name]\n"
        "    log.info('start ' + value, value=value, nested={'deep': [value, (value,)]}, raw=value.encode(),\n"
        "             r=repr(value), quoted=urllib.parse.quote(value, safe=''), thing=Thing(), **{value: 1})\n"
        "    logging.getLogger('lib').warning('arg %s and %r', value, value)\n"
        "    logging.getLogger('lib').warning('broken %d', value)\n"
        "    try: raise RuntimeError('cannot use ' + value) from ValueError(value)\n"
        "    except RuntimeError: log.exception('failed'); logging.getLogger('lib').exception('failed')\n"
        "    from worker.events import ServiceFault\n"
        "    from worker.logs import LogSubscriber\n"
        "    LogSubscriber().on_event(ServiceFault('sql', value))\n"
        f"log.info('x', password='{CANARY}', api_key='{CANARY}', headers={{'Authorization': '{CANARY}'}})\n"
        "log.info('/'.join([settings.redis_url.get_secret_value(), 'x']))\n"
        f"log.info('{CANARY}/redis')\n"
        "def fail(): raise RuntimeError(os.environ['ASSISTQ_PROVIDER_API_KEY'])\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join()\n"
        "fail()\n",
        **SECRETS,
    )
    # of each of the four values: the start, lib's first warning (its broken one is dropped), two failures, a fault
    assert len([line for line in lines if line["event"].startswith("start ")]) == 4
    assert len([line for line in lines if line["event"] == "service_fault"]) == 4
    assert lines[-1]["event"] == "uncaught exception"
    assert [line for line in lines if CANARY in json.dumps(line)] == []


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Authorization: Bearer abc.def-ghi", f"Authorization: {MASK}"),
        ("authorization: Basic dXNlcjpwYXNz", f"authorization: {MASK}"),
        ("{'Authorization': 'abcdef'}", f"{{'Authorization': '{MASK}'}}"),
        ("[(b'authorization', b'Bearer abcdef')]", f"[(b'authorization', b'{MASK}')]"),
        ("sent Bearer abcdef, got 401", f"sent Bearer {MASK}, got 401"),
        ("key sk-proj-abc_123 refused", f"key {MASK} refused"),
        ("Incorrect API key provided: sk-abcdef.", f"Incorrect API key provided: {MASK}."),
        ("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD/==", MASK),
        ("redis://user:p%40ss@host:6379/0", f"redis://{MASK}@host:6379/0"),
        ("postgresql+psycopg://u:p@ss@host/db", f"postgresql+psycopg://{MASK}@host/db"),
        ("https://token@host/path", f"https://{MASK}@host/path"),
        ("https://host/hook?key=abc&x=1", f"https://host/hook?key={MASK}&x=1"),
        ("host=x password=hunter2 dbname=y", f"host=x password={MASK} dbname=y"),
        ('{"api_key": "abc"}', f'{{"api_key": "{MASK}"}}'),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, masked: str) -> None:
    assert SecretMask().text(text) == masked
    assert SecretMask().text(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "task-123456 of batch risk-99 ended",
        "http://127.0.0.1:8700/metrics",
        "see http://host/a mail x@y.org",
        "password authentication failed for user assistq",
        "the bearer",
        "prompt_tokens=70",
        "basic information about the authorization of jobs",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert SecretMask("abc123").text(text) == text


def test_a_short_secret_is_masked_only_where_it_stands_alone() -> None:
    mask = SecretMask("local")
    assert mask.text("key local refused by localhost") == f"key {MASK} refused by localhost"


def test_counts_named_after_tokens_are_no_secrets_and_keys_of_secrets_are() -> None:
    fields = {"prompt_tokens": 7, "kind": "token", "api_key": "x", "db_password": "y", "secret": None}
    assert SecretMask()(None, "", dict(fields)) == {
        "prompt_tokens": 7,
        "kind": "token",
        "api_key": MASK,
        "db_password": MASK,
        "secret": None,
    }


def test_a_huge_field_is_cut_and_costs_little() -> None:
    mask = SecretMask.of(Settings.from_env())
    started = time.monotonic()
    for hostile in ("a", "://", "bearer ", "http://a", "password", "token=&", "Authorization: b"):
        assert len(mask.text(hostile * 500_000)) <= MAX_FIELD_CHARS + 1
    assert time.monotonic() - started < 5


# --- under Dramatiq's command line ------------------------------------------------------------

APP = """
import logging
import dramatiq
from dramatiq.brokers.stub import StubBroker
from schemas.settings import Settings
from schemas import logs
logs.configure(Settings.from_env())
dramatiq.set_broker(StubBroker())
logging.getLogger("app").warning("imported two\\nlines")
"""
# As `python -m worker` starts it: configured first, so that the master's own records are JSON too.
LAUNCH = """
import sys
from dramatiq import cli
from schemas.settings import Settings
from schemas import logs
logs.configure(Settings.from_env())
args = ["logged_app", "--processes", "2", "--threads", "1", "--skip-logging", "--path", sys.argv[1]]
args += ["--fork-function", "worker.metrics_server:serve"]
sys.exit(cli.main(cli.make_argument_parser().parse_args(args)))
"""


def test_under_dramatiq_every_line_of_every_process_is_json(tmp_path: Path) -> None:
    (tmp_path / "logged_app.py").write_text(APP)
    (tmp_path / "metrics").mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ASSISTQ_METRICS_PORT": "0",
        "ASSISTQ_REDIS_URL": f"unix://{tmp_path / 'none'}",
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics"),
    }
    lines = []
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True
    ) as master:
        assert master.stderr is not None
        for text in master.stderr:
            lines.append(json.loads(text))
            if lines[-1]["event"] == "metrics_served":
                master.send_signal(signal.SIGTERM)
    assert master.returncode == 0
    events = [line["event"] for line in lines]
    assert events.count("imported two\nlines") == 2
    assert events.count("Worker process is ready for action.") == 2
    assert any("is booting up" in event for event in events)
    assert "Stopping fork process..." in events
