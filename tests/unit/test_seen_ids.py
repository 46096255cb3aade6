from __future__ import annotations

import sqlite3
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.bulk import seen_ids
from producer.bulk.seen_ids import SeenIds
from schemas import AssistqError

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(ids=st.lists(IDS | st.sampled_from(["1", "01", "1.0", "a", "A", "a ", "a\0b", "a\0c"]), max_size=50))
def test_an_id_is_known_exactly_if_it_was_told_before_and_its_first_line_is_told(ids):
    seen = SeenIds()
    expected: dict[str, int] = {}
    for line, custom_id in enumerate(ids):
        assert seen.first_line(custom_id, line) == expected.get(custom_id)
        expected.setdefault(custom_id, line)


def test_ids_that_only_look_alike_are_different():
    seen = SeenIds()
    alike = ["é", unicodedata.normalize("NFD", "é"), "É", "е", "1", "1.0", "1 ", " 1", "1\0"]
    assert [seen.first_line(custom_id, line) for line, custom_id in enumerate(alike)] == [None] * len(alike)


def test_ids_of_one_hash_are_different():
    class Same(str):
        __slots__ = ()

        def __hash__(self):
            return 7

    seen = SeenIds()
    assert [seen.first_line(Same(f"id-{number}"), number) for number in range(100)] == [None] * 100
    assert seen.first_line(Same("id-50"), 100) == 50


def test_more_ids_than_the_cache_holds_are_known_from_the_disk(monkeypatch):
    monkeypatch.setattr(seen_ids, "_CACHE_KIB", 64)
    seen = SeenIds()
    ids = [f"{number * 7919 % 100_003:064}" for number in range(20_000)]
    assert not any(seen.first_line(custom_id, line) for line, custom_id in enumerate(ids))
    assert [seen.first_line(custom_id, 0) for custom_id in ids[::1000]] == list(range(0, 20_000, 1000))


def test_a_full_disk_is_an_error_that_names_the_mend():
    seen = SeenIds()
    seen._ids.execute("COMMIT")
    seen._ids.execute("PRAGMA max_page_count=4")
    with pytest.raises(AssistqError, match="database or disk is full; set TMPDIR") as caught:
        any(seen.first_line(f"id-{line}", line) for line in range(10_000))
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
