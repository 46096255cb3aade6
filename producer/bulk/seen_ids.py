"""The `custom_id`s of a file, of which no two may be equal, however many rows it has."""

from __future__ import annotations

import sqlite3

from schemas import AssistqError

_CACHE_KIB = 16_384


class SeenIds:
    """Knows every id that it was told, exactly, and the line of each; closes with its last reference.

    They are in a temporary SQLite database, of which at most _CACHE_KIB are in memory and the
    rest is in a nameless file: a set of a million ids would take 100 MB. Keeping hashes alone
    would be smaller, but two ids of one hash would then reject a good row.
    """

    def __init__(self) -> None:
        """Know no id yet; nothing is on disk before the cache is full."""
        # Nobody else reads it, and it is gone after a crash: it needs neither journal nor flushes.
        self._ids = sqlite3.connect("", isolation_level=None)
        for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KIB}"):
            self._ids.execute(f"PRAGMA {setting}")
        self._ids.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID")
        self._ids.execute("BEGIN")
        self._cursor = self._ids.cursor()

    def first_line(self, custom_id: str, line: int) -> int | None:
        """Return the line that has the id already; None if this one is its first, which is remembered.

        Raises AssistqError if the temporary directory is full.
        """
        try:
            self._cursor.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (custom_id, line))
            if self._cursor.rowcount:
                return None
            (first,) = self._ids.execute("SELECT line FROM ids WHERE id = ?", (custom_id,)).fetchone()
        except sqlite3.Error as exc:
            raise AssistqError(
                f"the file's custom_ids cannot be compared: {exc}; set TMPDIR to a directory with more space"
            ) from exc
        return int(first)
