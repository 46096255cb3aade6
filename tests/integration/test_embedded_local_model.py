from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import httpx
import psutil
import pytest

from producer.embedded.local_model import ProviderEndpoint, served
from producer.embedded.model_file import SMOLLM2, ensure_model_file
from schemas.errors import AssistqError
from schemas.settings import Settings
from tests.processes import until

REPOSITORY = Path(__file__).resolve().parents[2]

SERVE_AND_SAY_WHAT_WENT_WRONG = """
from producer.embedded.local_model import served
from schemas.errors import InputError
from schemas.settings import Settings
try:
    with served(Settings(), say=print):
        print("served")
except InputError as exc:
    print(exc)
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def no_word(_text: str) -> None:
    pytest.fail("nothing was to be said")


def ignored(_text: str) -> None:
    pass


def server_under_us() -> psutil.Process | None:
    """The model server among our children; None while there is none."""
    for process in psutil.Process().children():
        try:
            if "producer.embedded.model_server" in process.cmdline():
                return process
        except psutil.Error:
            continue
    return None


def test_a_configured_provider_is_used_and_nothing_is_started(tmp_path: Path) -> None:
    settings = Settings(provider_base_url="https://models.example/v1/", model="large", data_dir=tmp_path / "data")

    with served(settings, say=no_word) as endpoint:
        assert endpoint == ProviderEndpoint(base_url="https://models.example/v1", model="large", local=False)
    assert not settings.data_dir.exists()


def test_without_a_provider_and_without_the_extra_one_line_names_both_ways(tmp_path: Path) -> None:
    """The packages of this environment without xllamacpp, in an interpreter that sees no others."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}:
        for package in entry.iterdir():
            if not package.name.startswith("xllamacpp"):
                (packages / package.name).symlink_to(package)

    done = subprocess.run(
        [sys.executable, "-S", "-c", SERVE_AND_SAY_WHAT_WENT_WRONG],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{packages}"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == (
        "there is no provider; set ASSISTQ_PROVIDER_BASE_URL (and ASSISTQ_PROVIDER_API_KEY),"
        " or: pip install 'assistq[local]'\n"
    )


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module xllamacpp of the test's own, empty yet, and a model file of the right size."""
    module = tmp_path / "library" / "xllamacpp.py"
    module.parent.mkdir()
    monkeypatch.syspath_prepend(str(module.parent))
    monkeypatch.setenv("PYTHONPATH", f"{module.parent}{os.pathsep}{REPOSITORY}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    models = tmp_path / "cache" / "assistq" / "models"
    models.mkdir(parents=True)
    with (models / SMOLLM2.file_name).open("wb") as file:
        file.truncate(SMOLLM2.size_bytes)
    return module


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            "raise ImportError('libgomp.so.1: cannot open shared object file: No such file or directory')",
            r"^the local model needs the system library libgomp\.so\.1; install it: apt-get install libgomp1; its log",
        ),
        (
            "raise ImportError('libstdc++.so.6: no')",
            r"^the local model's library xllamacpp cannot be loaded: libstdc\+\+\.so\.6: no; its log: ",
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
            r"^the local model server ended at its start: signal 4 \(this processor may lack AVX2\); its log: ",
        ),
        ("import os; os._exit(9)", "^the local model server ended at its start: exit status 9; its log: "),
    ],
)
def test_a_library_that_cannot_run_here_is_told_in_one_line(
    settings: Settings, library: Path, content: str, complaint: str
) -> None:
    library.write_text(content)

    with pytest.raises(AssistqError, match=complaint), served(settings, say=no_word):
        pass

    assert server_under_us() is None


def test_a_server_that_says_it_is_ready_but_does_not_answer_is_not_handed_out(
    settings: Settings, library: Path
) -> None:
    library.write_text(
        "from types import SimpleNamespace as Any\n"
        "CommonParams = lambda: Any(model=Any(), cpuparams=Any(), cpuparams_batch=Any())\n"
        "Server = lambda params: Any(listening_address='http://127.0.0.1:9')\n"
    )

    with pytest.raises(AssistqError, match="the local model server does not answer"), served(settings, say=no_word):
        pass

    assert server_under_us() is None


@pytest.mark.local_model
def test_the_local_model_answers_a_chat_and_keeps_to_a_schema(settings: Settings) -> None:
    with served(settings, say=ignored) as endpoint, httpx.Client(timeout=100, trust_env=False) as client:
        assert (endpoint.model, endpoint.local) == ("smollm2-135m", True)
        assert str(endpoint.base_url).startswith("http://127.0.0.1:")
        assert [model["id"] for model in client.get(f"{endpoint.base_url}/models").json()["data"]] == ["smollm2-135m"]
        schema = {"enum": ["positive", "negative"]}
        reply = client.post(
            f"{endpoint.base_url}/chat/completions",
            json={
                "model": endpoint.model,
                "messages": [{"role": "user", "content": "Review: Superb."}],
                "temperature": 0,
                "max_tokens": 8,
                "response_format": {"type": "json_schema", "json_schema": {"name": "output", "schema": schema}},
            },
        ).json()

    assert json.loads(reply["choices"][0]["message"]["content"]) in {"positive", "negative"}
    assert reply["usage"]["prompt_tokens"] > 0
    assert server_under_us() is None


@pytest.mark.local_model
def test_a_model_server_that_is_killed_is_started_again_at_the_same_address(settings: Settings) -> None:
    said: list[str] = []
    with served(settings, say=said.append) as endpoint, httpx.Client(timeout=60, trust_env=False) as client:
        health = str(endpoint.base_url).removesuffix("/v1") + "/health"
        killed = server_under_us()
        assert killed is not None
        killed.kill()
        until(lambda: any("ended (signal 9)" in text for text in said), what="its death is told")

        def answers() -> bool:
            try:
                return client.get(health).status_code == 200
            except httpx.TransportError:
                return False

        until(answers, what="it answers again", timeout_s=60)
        replacement = server_under_us()
        assert replacement is not None
        assert replacement.pid != killed.pid


@pytest.mark.local_model
def test_the_model_server_prints_its_address_and_ends_well_on_sigterm(settings: Settings) -> None:
    model = ensure_model_file(settings, say=ignored)
    command = [sys.executable, "-m", "producer.embedded.model_server", "--model", str(model), "--alias", "m"]
    with subprocess.Popen(
        [*command, "--slots", "1"], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        message = json.loads(server.stdout.readline())
        with httpx.Client(trust_env=False) as client:
            status = client.get(f"{message['url']}/health").status_code
        server.send_signal(signal.SIGTERM)

        assert server.wait(30) == 0
        assert status == 200


@pytest.mark.local_model
def test_a_file_that_is_no_model_is_told(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_text("no model")
    command = [sys.executable, "-m", "producer.embedded.model_server", "--model", str(tmp_path / "no.gguf")]

    done = subprocess.run([*command, "--alias", "m"], cwd=REPOSITORY, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert json.loads(done.stdout)["error"].startswith(f"the local model server did not start with {tmp_path}")
