"""`assistq keys`: keys to the gateway, made, listed, shared and revoked at a shell."""

from __future__ import annotations

from typing import Any

import pytest

from tests.command_line import Ended, Installation


def at_once(shell: Installation, *commands: tuple[str, ...]) -> list[Ended]:
    return [running.ended() for running in [shell.start("keys", *command) for command in commands]]


def listed(shell: Installation, *arguments: str) -> list[dict[str, Any]]:
    return list(shell.run("keys", "list", *arguments, "--json").json)


def test_a_key_is_printed_once_and_alone_and_only_its_hash_is_kept(shell: Installation) -> None:
    made = shell.run("keys", "create", "demo", "--name", "the shop \x1b[31m", "--rpm", "60", "--expires-in", "30d")
    assert made.code == 0, made.err
    text = made.out.strip()
    key_id, secret = text.removeprefix("aq_").split("_", 1)
    assert f"key {key_id} of workspace demo; it is not shown again" in made.err
    as_json = shell.run("keys", "create", "other", "--scope", "run", "--scope", "read", "--scope", "run", "--json").json
    assert as_json["key"].startswith(f"aq_{as_json['id']}_")
    assert as_json["scopes"] == ["run", "read"]

    shown, of_demo = at_once(shell, ("list",), ("list", "demo", "--json"))
    assert "the shop \ufffd[31m" in shown.out
    assert "other" in shown.out
    (key,) = of_demo.json
    assert (key["id"], key["state"], key["rpm"], key["assistants"]) == (key_id, "active", 60, None)
    assert key["expires_at"]
    assert "secret_hash" not in key
    for place in (shown.out, of_demo.out, made.err):
        assert secret not in place
    kept = b"".join(path.read_bytes() for path in shell.data_dir.rglob("*") if path.is_file())
    assert key_id.encode() in kept
    assert secret.encode() not in kept
    # No server was started for it.
    assert not shell.socket.exists()


def test_assistants_are_shared_and_unshared_and_a_key_is_revoked(shell: Installation) -> None:
    assert shell.run("assistants", "apply", shell.sentiment()).code == 0
    made = shell.run("keys", "create", "demo", "--assistant", "demo/reviews/sentiment", "--json")
    assert made.err == ""
    key, text = made.json["id"], made.json["key"]
    shared = shell.run("keys", "share", key, "demo/reviews/later")
    assert "demo/reviews/later is not stored yet" in shared.err
    assert "is active for demo/reviews/later, demo/reviews/sentiment" in shared.err
    assert "running gateways know within 5 s" in shared.err
    unshared = shell.run("keys", "unshare", key, "demo/reviews/later", "demo/reviews/sentiment", "--json")
    assert unshared.json["assistants"] == []

    # Who found a key somewhere revokes it by what was found.
    revoked = shell.run("keys", "revoke", text)
    assert revoked.code == 0, revoked.err
    assert f"key {key} of workspace demo is revoked" in revoked.err
    assert text not in revoked.err
    (before,) = listed(shell)
    assert (before["state"], shell.run("keys", "revoke", key, "--json").json) == ("revoked", before)


@pytest.fixture
def key(shell: Installation) -> str:
    return str(shell.run("keys", "create", "demo", "--assistant", "demo/a/b", "--json").json["id"])


def test_what_cannot_be_is_refused_and_changes_nothing(shell: Installation, key: str) -> None:
    before = listed(shell)
    of_all, mistyped, other, no_workspace, share_other, not_shared, unknown, no_id = at_once(
        shell,
        ("share", "0" * 16, "demo/a/b"),
        ("create", "demo", "--assistant", "demo/a"),
        ("create", "demo", "--assistant", "other/a/b"),
        ("create", "no/workspace"),
        ("share", key, "other/a/b"),
        ("unshare", key, "demo/a/c"),
        ("revoke", "f" * 16),
        ("revoke", "sk-a-secret-of-another-place"),
    )
    of_all.refused("key 0000000000000000 is not known", "assistq keys list")
    mistyped.refused("'demo/a' is no assistant", "write workspace/project/assistant")
    other.refused("other/a/b is not of workspace demo")
    no_workspace.refused("'no/workspace' is no workspace")
    share_other.refused("other/a/b is not of workspace demo")
    not_shared.refused("demo/a/c is not shared with the key")
    unknown.refused("key ffffffffffffffff is not known")
    no_id.refused("that is no key's id")
    assert "secret" not in no_id.err
    assert listed(shell) == before
    all_of_it = shell.run("keys", "create", "demo", "--json").json["id"]
    shell.run("keys", "share", all_of_it, "demo/a/b").refused("may use all assistants of workspace demo")
    wrong = at_once(
        shell,
        ("create", "demo", "--scope", "everything"),
        ("create", "demo", "--rpm", "0"),
        ("create", "demo", "--expires-in", "soon"),
        ("share", key),
    )
    assert [each.code for each in wrong] == [2, 2, 2, 2]
