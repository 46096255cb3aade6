"""`assistq assistants`: versions and environments from YAML, and what the worker makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.at_work import Scene, said
from tests.command_line import Ended, Installation


@pytest.fixture
def at_the_same_database(shell: Installation, scene: Scene) -> Installation:
    """A shell whose assistants are those of the scene's worker."""
    shell.env["ASSISTQ_DATABASE_URL"] = scene.works.database_url
    return shell


def told(ended: Ended) -> str:
    """Return what a command that succeeded printed."""
    assert ended.code == 0, ended.err
    return ended.out


def written(shell: Installation, scene: Scene, instructions: str, **fields: object) -> Path:
    """Write an assistant file."""
    content = {"assistant": scene.address, "model": scene.model, "instructions": instructions, **fields}
    return shell.file(f"{instructions}.yaml", yaml.safe_dump(content))


def test_versions_are_immutable_apply_is_idempotent_and_jobs_run_what_their_environment_points_at(
    at_the_same_database: Installation, scene: Scene
) -> None:
    shell, address = at_the_same_database, scene.address
    one, two = written(shell, scene, "one"), written(shell, scene, "two", environment="staging", temperature=0.5)

    first = json.loads(told(shell.run("assistants", "apply", one, two, "--json")))
    assert first == [
        {"assistant": address, "environment": "production", "version": 1, "new_version": True, "changed": True},
        {"assistant": address, "environment": "staging", "version": 2, "new_version": True, "changed": True},
    ]
    again = told(shell.run("assistants", "apply", one, two))
    assert again.splitlines() == [f"{address} in production: unchanged", f"{address} in staging: unchanged"]

    # Each environment runs its own version; a job may pin one; the version that ran is recorded.
    ran = {
        "production": scene.succeeds("go"),
        "staging": scene.succeeds("go", environment="staging"),
        "pinned": scene.succeeds("go", version=1, environment="staging"),
    }
    assert {which: result.version for which, result in ran.items()} == {"production": 1, "staging": 2, "pinned": 1}
    for result in ran.values():
        assert scene.works.row(result.job_id).version == result.version
    assert [said(body)[0][1] for body in scene.asked] == ["one", "two", "one"]
    assert [body.get("temperature") for body in scene.asked] == [None, 0.5, None]

    # A changed file is a new version, and the old ones stay as they were.
    three = written(shell, scene, "three")
    assert (
        told(shell.run("assistants", "apply", three)) == f"{address} in production: new version 3, before version 1\n"
    )
    assert scene.succeeds("go").version == 3
    assert scene.succeeds("go", version=1).version == 1
    assert [said(body)[0][1] for body in scene.asked[-2:]] == ["three", "one"]

    # An older one comes back without a new number, by its file or by its number.
    assert told(shell.run("assistants", "apply", one)) == f"{address} in production: version 1, before version 3\n"
    deployed = told(shell.run("assistants", "deploy", address, "--environment", "canary", "--version", 3))
    assert deployed == f"{address} in canary: version 3, new\n"
    assert scene.succeeds("go", environment="canary").version == 3
    listed = json.loads(told(shell.run("assistants", "list", "--json")))
    assert [each for each in listed if each["assistant"] == address] == [
        {"assistant": address, "newest": 3, "environments": {"production": 1, "staging": 2, "canary": 3}}
    ]


def test_what_show_prints_can_be_applied_and_diff_tells_what_is_different(
    at_the_same_database: Installation, scene: Scene
) -> None:
    shell, address = at_the_same_database, scene.address
    whole = {
        "template": [{"role": "user", "content": [{"type": "text", "text": "{{ x }}"}]}],
        "output": {"type": "object", "schema": {"type": "object", "properties": {"a": {"const": 1}}}},
        "tools": [{"type": "python", "name": "word_count"}],
        "variables": {"x": "ü"},
        "max_steps": 3,
        "stop": ["END"],
    }
    told(shell.run("assistants", "apply", written(shell, scene, "one", **whole)))
    shown = told(shell.run("assistants", "show", address))
    file = shell.file("shown.yaml", shown)
    assert told(shell.run("assistants", "apply", file)) == f"{address} in production: unchanged\n"
    same = shell.run("assistants", "diff", f"{address}@1", file)
    assert (same.code, same.out) == (0, "")

    changed = written(shell, scene, "changed", **whole | {"max_steps": 4})
    different = shell.run("assistants", "diff", address, changed)
    assert different.code == 3
    lines = different.out.splitlines()
    assert [line for line in lines if line.startswith(("-", "+"))][2:] == [
        "-instructions: one",
        "+instructions: changed",
        "-max_steps: 3",
        "+max_steps: 4",
    ]


def test_what_is_not_there_or_not_right_is_told_and_changes_nothing(
    at_the_same_database: Installation, scene: Scene
) -> None:
    shell, address = at_the_same_database, scene.address
    good = written(shell, scene, "good")
    bad = shell.file("bad.yaml", f"assistant: {address}\ninstructions: x\ntemprature: 1\n")
    shell.run("assistants", "apply", good, bad).refused("bad.yaml:3: unknown key 'temprature'")
    # Nothing was stored, not even the file that is right.
    shell.run("assistants", "show", address).refused(f"assistant {address} has no environment 'production'")
    told(shell.run("assistants", "apply", good))
    refused = {
        ("deploy", address, "--environment", "e", "--version", 2): "has no version 2",
        ("deploy", address, "--environment", "a/b", "--version", 1): "'a/b' is no name",
        ("show", address, "--environment", "e"): "has no environment 'e'",
    }
    running = [(shell.start("assistants", *command), why) for command, why in refused.items()]
    for command, why in running:
        command.ended().refused(why)
