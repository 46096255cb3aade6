"""What `run` and `submit` share: the assistant that is named, and the file's rows as jobs of a batch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from producer import assistants
from producer.assistants import Assistants
from producer.bulk import assistant_file, rows
from producer.bulk.rows import BadRow, Checked
from producer.cli.console import say
from producer.entries import RejectedRow
from producer.written_job import WrittenJob
from schemas.assistant import AssistantConfig
from schemas.errors import InputError
from schemas.job import InvokeJob

_YAML_SUFFIXES = (".yaml", ".yml")
_SKIPPED_TOLD = 10


@dataclass(frozen=True, slots=True)
class Source:
    """A file that was read once and found good, with the assistant version that its rows are for."""

    path: Path
    config: AssistantConfig
    version: int
    checked: Checked

    @property
    def batch_id(self) -> str:
        """Return the id that the same file with the same assistant always gets, so that a run can go on."""
        digest = hashlib.sha256()
        for part in (rows.fingerprint(self.path), assistants.fingerprint(self.config)):
            digest.update(part.encode())
        return f"run_{digest.hexdigest()[:20]}"

    def jobs_only(self) -> Iterator[InvokeJob]:
        """Yield each row's job, whether it can run or not."""
        for entry in rows.read_rows(self.path, self.config, version=self.version):
            yield entry.job

    def jobs(self) -> Iterator[WrittenJob | RejectedRow]:
        """Yield the rows as jobs, in order; a bad one as the record that stands in for it."""
        good = self.checked.bad_total == 0
        for entry in rows.read_rows(self.path, self.config, version=self.version, unique_ids=good):
            yield RejectedRow(job=entry.job, rejection=entry.rejection) if isinstance(entry, BadRow) else entry


def read(path: Path, assistant: str, stored: Assistants, *, skip_bad_rows: bool) -> Source:
    """Read the whole file and the assistant that is named, by a file or an address.

    Raises InputError for what is wrong with either. Only after that an assistant file is
    stored, which is told if it changed anything.
    """
    if _is_assistant_file(assistant):
        config = assistant_file.load(Path(assistant))
        checked = _checked(path, config, skip_bad_rows=skip_bad_rows)
        applied = stored.apply(config)
        if applied.changed:
            say(f"assistant {applied.address} is now version {applied.version} in {applied.environment}")
        return Source(path=path, config=config, version=applied.version, checked=checked)
    if assistant.count("/") != 2:
        raise InputError(
            f"--assistant '{assistant}' is neither a YAML file nor an address",
            mend="name a file, or a stored assistant as workspace/project/assistant",
        )
    config, version = stored.config(assistant)
    return Source(
        path=path, config=config, version=version, checked=_checked(path, config, skip_bad_rows=skip_bad_rows)
    )


def _is_assistant_file(assistant: str) -> bool:
    path = Path(assistant)
    # os.path: of a name that no file can have, Path.is_file() makes an error.
    return path.suffix.lower() in _YAML_SUFFIXES or os.path.isfile(path)  # noqa: PTH113


def _checked(path: Path, config: AssistantConfig, *, skip_bad_rows: bool) -> Checked:
    checked = rows.check(path, config)
    if checked.bad_total and (not skip_bad_rows or checked.bad_total == checked.rows):
        raise rows.refusal(checked)
    for bad in checked.bad[:_SKIPPED_TOLD]:
        say(f"skipped: {bad.problem}")
    if checked.bad_total > _SKIPPED_TOLD:
        say(f"… and {checked.bad_total - _SKIPPED_TOLD:,} more rows are skipped; each has its error in the results")
    return checked
