from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from producer.embedded.valkey import Answer, ask, attached, running_url
from schemas.errors import AssistqError, InputError
from schemas.settings import Settings
from tests.processes import is_alive, until

ATTACH_UNTIL_STDIN_ENDS = """
import sys
from redis import Redis
from producer.embedded.valkey import attached
from schemas.settings import Settings
with attached(Settings()) as url:
    print(Redis.from_url(url).info("server")["run_id"], flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """Settings of a data directory of the test's own, whose socket's directory is removed afterwards."""
    settings = Settings(data_dir=tmp_path / "a data dir")
    yield settings
    shutil.rmtree(socket_path(settings).parent, ignore_errors=True)


def socket_path(settings: Settings) -> Path:
    return Path(settings.embedded_redis_url.removeprefix("unix://"))


@contextmanager
def client_of(url: str) -> Iterator[Redis]:
    """A client that rides out a restart of its server."""
    retry = Retry(ConstantBackoff(0.05), 400)
    with Redis.from_url(url, decode_responses=True, retry=retry) as client:
        yield client


def server_pid(url: str) -> int:
    with client_of(url) as client:
        return int(client.info("server")["process_id"])


def run_id(url: str) -> str:
    with client_of(url) as client:
        return str(client.info("server")["run_id"])


def put_on_disk(url: str, key: str, value: str) -> None:
    with client_of(url) as client:
        client.set(key, value)
        assert client.execute_command("WAITAOF", 1, 0, 5000)[0] == 1


@contextmanager
def another_process(settings: Settings) -> Iterator[subprocess.Popen[str]]:
    """A process that is attached until its stdin ends; it prints the server's run id."""
    process = subprocess.Popen(
        [sys.executable, "-c", ATTACH_UNTIL_STDIN_ENDS],
        env={**os.environ, "ASSISTQ_DATA_DIR": str(settings.data_dir)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def said_by(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_configured_url_is_used_and_nothing_is_started(tmp_path: Path) -> None:
    settings = Settings(redis_url=SecretStr("redis://elsewhere:6379/3"), data_dir=tmp_path / "data")

    with attached(settings) as url:
        assert url == "redis://elsewhere:6379/3"
    assert running_url(settings) == "redis://elsewhere:6379/3"
    assert not settings.data_dir.exists()


def test_the_server_keeps_what_it_is_told_and_is_reached_by_its_owner_alone(settings: Settings) -> None:
    with attached(settings) as url, client_of(url) as client:
        configured = client.config_get("*")
        assert url == settings.embedded_redis_url
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (socket_path(settings), socket_path(settings).parent)]
        data_modes = [stat.S_IMODE(path.stat().st_mode) for path in (settings.data_dir, settings.data_dir / "valkey")]

    assert configured["appendonly"] == "yes"
    assert configured["appendfsync"] == "everysec"
    assert configured["maxmemory-policy"] == "noeviction"
    assert configured["save"] == ""
    assert configured["port"] == "0"
    assert modes == data_modes == [0o700, 0o700]


def test_it_ends_with_the_one_who_started_it_and_its_data_stays(settings: Settings) -> None:
    assert running_url(settings) is None
    with attached(settings) as url:
        assert running_url(settings) == url
        pid = server_pid(url)
        with client_of(url) as client:
            client.set("kept", "yes")

    assert not is_alive(pid)
    assert running_url(settings) is None
    with attached(settings) as url, client_of(url) as client:
        assert client.get("kept") == "yes"


def test_who_comes_second_shares_the_server_and_does_not_stop_it(settings: Settings) -> None:
    with attached(settings) as url:
        first, children = run_id(url), psutil.Process().children()
        with attached(settings) as same_url:
            assert run_id(same_url) == first
            assert psutil.Process().children() == children

        assert run_id(url) == first


def test_processes_that_start_at_once_get_one_server(settings: Settings) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(another_process(settings)) for _ in range(4)]
        run_ids = {said_by(process) for process in processes}

    assert len(run_ids) == 1
    assert run_ids != {""}
    assert running_url(settings) is None


def test_who_is_left_takes_over_with_all_data_when_the_owner_leaves(settings: Settings) -> None:
    with ExitStack() as second:
        with attached(settings) as url:
            second.enter_context(attached(settings))
            first = server_pid(url)
            with client_of(url) as client:
                client.set("kept", "yes")

        with client_of(url) as client:
            assert client.get("kept") == "yes"
        assert server_pid(url) != first

    assert running_url(settings) is None


def test_a_server_that_is_killed_comes_back_with_all_that_was_on_disk(settings: Settings) -> None:
    heard: list[str] = []
    with attached(settings, say=heard.append) as url:
        put_on_disk(url, "kept", "yes")
        killed = server_pid(url)
        os.kill(killed, signal.SIGKILL)

        with client_of(url) as client:
            until(lambda: server_pid(url) != killed, what="another server answers")
            assert client.get("kept") == "yes"

    assert len(heard) == 1
    assert f"ended (signal 9), starting it again; its log: {settings.data_dir / 'valkey' / 'valkey.log'}" in heard[0]


@pytest.mark.skipif(sys.platform != "linux", reason="the leash is a call of Linux")
def test_it_does_not_outlive_an_owner_that_is_killed_and_the_next_start_finds_the_data(settings: Settings) -> None:
    with another_process(settings) as owner:
        first = said_by(owner)
        url = settings.embedded_redis_url
        pid = server_pid(url)
        put_on_disk(url, "kept", "yes")
        owner.kill()
        owner.wait()
        until(lambda: not is_alive(pid), what="the server has ended")

    with attached(settings) as url, client_of(url) as client:
        assert client.get("kept") == "yes"
        assert run_id(url) != first


def test_a_stale_socket_does_not_hinder_the_next_start_after_everything_was_killed(settings: Settings) -> None:
    with another_process(settings) as owner:
        said_by(owner)
        put_on_disk(settings.embedded_redis_url, "kept", "yes")
        server = server_pid(settings.embedded_redis_url)
        # Stopped, the owner cannot restart the server before it is killed too.
        owner.send_signal(signal.SIGSTOP)
        os.kill(server, signal.SIGKILL)
        owner.kill()
        owner.wait()
    until(lambda: not is_alive(server), what="the server has ended")
    assert socket_path(settings).exists()
    assert running_url(settings) is None

    with attached(settings) as url, client_of(url) as client:
        assert client.get("kept") == "yes"


def test_a_damaged_append_only_file_is_one_clear_error_that_names_the_log(settings: Settings) -> None:
    with attached(settings) as url, client_of(url) as client:
        client.set("kept", "yes")
    (increment,) = (settings.data_dir / "valkey" / "appendonlydir").glob("*.incr.aof")
    whole = increment.read_bytes()
    increment.write_bytes(b"no command at all\r\n" * 10 + whole)

    with pytest.raises(AssistqError) as refused, attached(settings):
        pass

    message = str(refused.value)
    assert message.startswith("the embedded Valkey did not start (exit status 1), it said: ")
    assert "Bad file format" in message
    assert str(settings.data_dir / "valkey" / "valkey.log") in message
    assert "\n" not in message
    # Nothing of the failed start is in the way of the mended one.
    increment.write_bytes(whole)
    with attached(settings) as url, client_of(url) as client:
        assert client.get("kept") == "yes"


def test_an_append_only_file_that_a_crash_cut_short_is_loaded_up_to_the_cut(settings: Settings) -> None:
    with attached(settings) as url, client_of(url) as client:
        client.set("kept", "yes")
    (increment,) = (settings.data_dir / "valkey" / "appendonlydir").glob("*.incr.aof")
    increment.write_bytes(increment.read_bytes() + b"*3\r\n$3\r\nSET\r\n$4\r\nha")

    with attached(settings) as url, client_of(url) as client:
        assert client.get("kept") == "yes"


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701])
def test_a_socket_directory_that_others_may_enter_is_refused(settings: Settings, mode: int) -> None:
    socket_path(settings).parent.mkdir()
    socket_path(settings).parent.chmod(mode)

    with pytest.raises(InputError, match="is open to other users; remove it"), attached(settings):
        pass
    assert running_url(settings) is None


def test_a_link_in_the_place_of_the_socket_directory_is_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir(mode=0o700)
    socket_path(settings).parent.symlink_to(tmp_path / "ours")

    try:
        with pytest.raises(InputError, match="is not a directory"), attached(settings):
            pass
    finally:
        socket_path(settings).parent.unlink()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_socket_directory_of_another_user_is_refused(settings: Settings) -> None:
    socket_path(settings).parent.mkdir(mode=0o700)
    os.chown(socket_path(settings).parent, 54_321, -1)

    with pytest.raises(InputError, match="belongs to another user"), attached(settings):
        pass
    assert running_url(settings) is None


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = Settings(data_dir=tmp_path / "file" / "data")

    try:
        with (
            pytest.raises(InputError, match=r"cannot make the data directory .*set ASSISTQ_DATA_DIR"),
            attached(settings),
        ):
            pass
    finally:
        socket_path(settings).parent.rmdir()


def test_a_server_that_loads_its_data_is_waited_for(settings: Settings) -> None:
    """Another process holds the lock, and its server says twice that it is still loading."""
    (settings.data_dir / "valkey").mkdir(parents=True)
    socket_path(settings).parent.mkdir(mode=0o700)
    loading = [b"-LOADING Valkey is loading the dataset in memory\r\n"] * 2
    with (
        (settings.data_dir / "valkey" / "server.lock").open("ab") as lock,
        fake_server(socket_path(settings), pings=[*loading, b"+PONG\r\n"]) as left,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        with attached(settings) as url:
            assert url == settings.embedded_redis_url
            assert left == []


def test_a_server_that_loads_its_data_does_not_count_as_running(settings: Settings) -> None:
    socket_path(settings).parent.mkdir(mode=0o700)
    with fake_server(socket_path(settings), pings=[b"-LOADING x\r\n"] * 2):
        assert ask(settings.embedded_redis_url) is Answer.LOADING
        assert running_url(settings) is None


def test_a_server_that_cannot_be_reached_is_told_with_its_data_directory(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.embedded.valkey.START_TIMEOUT_S", 0.1)
    (settings.data_dir / "valkey").mkdir(parents=True)
    with (settings.data_dir / "valkey" / "server.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        with (
            pytest.raises(AssistqError, match=r"an embedded Valkey runs on .* but does not answer"),
            attached(settings),
        ):
            pass


def test_no_server_is_left_when_the_work_fails(settings: Settings) -> None:
    def work() -> None:
        with attached(settings) as url:
            pids.append(server_pid(url))
            raise RuntimeError("the work")

    pids: list[int] = []
    with pytest.raises(RuntimeError, match="the work"):
        work()

    assert not is_alive(pids[0])
    with pytest.raises(RedisConnectionError), Redis.from_url(settings.embedded_redis_url, retry=None) as client:
        client.ping()


@contextmanager
def fake_server(path: Path, *, pings: list[bytes]) -> Iterator[list[bytes]]:
    """A server that gives each PING the next of the answers; yields those left."""
    left = list(pings)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                for head in stream:
                    words = [stream.readline() and stream.readline().strip().upper() for _ in range(int(head[1:]))]
                    answer = b"%1\r\n$5\r\nproto\r\n:3\r\n" if words[0] == b"HELLO" else b"+OK\r\n"
                    connection.sendall(left.pop(0) if words[0] == b"PING" else answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield left
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
