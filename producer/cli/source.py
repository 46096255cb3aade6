"""What `run` and `submit` share: the assistant that is named, and the file's rows as jobs of a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from producer import assistants
from producer.assistants import Assistants
from producer.bulk import assistant_file, rows
from producer.bulk.rows import BadRow, Checked
from producer.cli.console import say
from producer.client import RejectedRow
from schemas.assistant import AssistantConfig
from schemas.errors import InputError
from schemas.job import InvokeJob

_YAML_SUFFIXES = (".yaml", ".yml")


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
            yield entry.job if isinstance(entry, BadRow) else entry

    def jobs(self) -> Iterator[InvokeJob | RejectedRow]:
        """Yield the rows as jobs, in order; a bad one as the record that stands in for it."""
        for entry in rows.read_rows(self.path, self.config, version=self.version):
            yield RejectedRow(job=entry.job, rejection=entry.rejection) if isinstance(entry, BadRow) else entry


def is_assistant_file(assistant: str) -> bool:
    """Return whether `--assistant` names a file rather than an address."""
    return Path(assistant).suffix.lower() in _YAML_SUFFIXES or Path(assistant).is_file()


def check_rows(path: Path, config: AssistantConfig, *, skip_bad_rows: bool) -> Checked:
    """Read the whole file; raise InputError, before anything is enqueued, if rows are bad and not to be skipped."""
    checked = rows.check(path, config)
    if checked.bad_total and not skip_bad_rows:
        raise rows.refusal(checked)
    if checked.bad_total == checked.rows:
        raise rows.refusal(checked)
    for bad in checked.bad[:10]:
        say(f"skipped: {bad.problem}")
    if checked.bad_total > 10:
        say(f"… and {checked.bad_total - 10:,} more rows are skipped; each has its error in the results")
    return checked


def load(assistant: str, stored: Assistants) -> tuple[AssistantConfig, int]:
    """Return the named assistant and its version; a file is applied first, which tells what changed."""
    if not is_assistant_file(assistant):
        if assistant.count("/") != 2:
            raise InputError(
                f"--assistant '{assistant}' is neither a YAML file nor an address",
                mend="name a file, or a stored assistant as workspace/project/assistant",
            )
        return stored.config(assistant)
    config = assistant_file.load(Path(assistant))
    applied = stored.apply(config)
    if applied.changed:
        say(f"assistant {applied.address} is now version {applied.version} in {applied.environment}")
    return config, applied.version
