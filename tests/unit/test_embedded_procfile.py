from __future__ import annotations

import sys
from pathlib import Path

import pytest

from producer.embedded import procfile
from schemas.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = {"worker": "python -m worker", "gateway": "python -m producer.gateway"}


def test_the_built_in_procfile_equals_the_file() -> None:
    assert (REPOSITORY / "Procfile").read_text(encoding="utf-8") == procfile.DEFAULT_PROCFILE


def test_the_procfile_of_the_directory_comes_first(tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_text("# ours\n\nworker: python -m worker --verbose\nextra: sleep 5\n")

    found = procfile.find(tmp_path)

    assert found.source == str(tmp_path / "Procfile")
    assert found.commands == {"worker": "python -m worker --verbose", "extra": "sleep 5"}


def test_without_one_there_it_is_that_of_the_repository(tmp_path: Path) -> None:
    found = procfile.find(tmp_path)

    assert found.source == str(REPOSITORY / "Procfile")
    assert found.commands == COMMANDS


def test_without_any_it_is_the_built_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As in an installed wheel, beside which no Procfile lies.
    monkeypatch.setattr(procfile, "__file__", str(tmp_path / "site-packages" / "producer" / "embedded" / "procfile.py"))

    assert procfile.find(tmp_path) == procfile.Procfile(source="built in", commands=COMMANDS)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "worker python -m worker\n",
            r"Procfile:1: 'worker python -m worker' is no process type; write `name: command`",
        ),
        ("worker: a\n\nworker: b\n", "Procfile:3: process type 'worker' stands there twice"),
        ("worker: python 'x\n", "Procfile:1: cannot split the command: No closing quotation"),
        ("worker: ''\n", "Procfile:1: the command names no program"),
        ("worker:  \n", "Procfile:1: the command names no program"),
        ("# nothing\n", "names no process type"),
    ],
)
def test_a_procfile_that_cannot_be_read_is_refused_with_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "Procfile").write_text(text)

    with pytest.raises(InputError, match=complaint):
        procfile.find(tmp_path)


def test_a_procfile_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_bytes(b"worker: caf\xe9\n")

    with pytest.raises(InputError, match="not UTF-8"):
        procfile.find(tmp_path)


def test_python_in_a_command_is_this_interpreter_and_no_shell_reads_the_rest() -> None:
    assert procfile.argv("python -m worker 'a b' $HOME") == [sys.executable, "-m", "worker", "a b", "$HOME"]
    assert procfile.argv("gunicorn python") == ["gunicorn", "python"]
