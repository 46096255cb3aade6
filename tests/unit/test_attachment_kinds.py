"""What reads an attachment is a program of its own, which may hang or die."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from producer.gateway.dialects.langdock import attachment_kinds, extract_text
from producer.gateway.problem import Kind, Problem


def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str) -> Any:
    path = tmp_path / "program.py"
    path.write_text(program)
    monkeypatch.setattr(attachment_kinds, "_PROGRAM", path)
    with tempfile.TemporaryFile() as file:
        file.write(b"%PDF-1.4")
        return attachment_kinds.content_of(file, filename="a.pdf", claimed_type=None, size_bytes=8)


def test_one_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(attachment_kinds, "EXTRACTION_TIMEOUT_S", 1.0)
    with pytest.raises(Problem, match=r"'a\.pdf' took more than 1 s") as refused:
        read(
            monkeypatch,
            tmp_path,
            f"open({str(tmp_path / 'pid')!r}, 'w').write(str(__import__('os').getpid()))\nwhile 1: 0",
        )
    assert refused.value.kind is Kind.BAD_REQUEST
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize("does", ["'x' * 2**31", "open('written', 'w').write('x' * 9999)", "__import__('os').abort()"])
def test_one_that_takes_what_it_must_not_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, does: str) -> None:
    monkeypatch.chdir(tmp_path)
    bound = f"import runpy\nrunpy.run_path({extract_text.__file__!r})['_bound']()\n"
    with pytest.raises(Problem, match="more time or memory"):
        read(monkeypatch, tmp_path, f'{bound}{does}\nprint(\'{{"text": "it may"}}\')')
    assert read(monkeypatch, tmp_path, f'{bound}print(\'{{"text": "it may"}}\')').text == "it may"


def test_it_has_nothing_of_the_gateways_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ASSISTQ_SECRET_CRM", "hush")
    tell = "import json, os\nprint(json.dumps({'text': str(dict(os.environ))}))"
    assert "hush" not in read(monkeypatch, tmp_path, tell).text
