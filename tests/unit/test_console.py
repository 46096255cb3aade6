from __future__ import annotations

import pytest

from producer.cli import console


def test_rows_are_given_on_as_they_are_and_counted_where_no_bar_can_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_PLAIN_PROGRESS_EVERY_S", 0.0)
    rows = [f"row {number}" for number in range(1_200)]
    assert list(console.counted(iter(rows), total=1_200, what="enqueuing")) == rows
    assert capsys.readouterr().err.splitlines() == [
        "enqueuing: 0/1200 rows",
        "enqueuing: 500/1200 rows",
        "enqueuing: 1000/1200 rows",
    ]


def test_nothing_is_said_of_what_takes_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(console.counted(range(1_200), total=1_200, what="enqueuing"))) == 1_200
    assert capsys.readouterr().err == ""
