"""The process types that `assistq up` runs, from the Procfile."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from honcho.environ import PROCFILE_LINE, parse_procfile

from schemas.errors import InputError

WORKER = "python -m worker"
# What an installed wheel runs, which has no repository beside it. Equal to the file.
DEFAULT_PROCFILE = f"worker: {WORKER}\ngateway: python -m producer.gateway\n"


@dataclass(frozen=True, slots=True)
class Procfile:
    """Commands by the name of their process type; `source` is its path, or "built in"."""

    source: str
    commands: dict[str, str]


def find(directory: Path) -> Procfile:
    """Return the Procfile of the directory, else that of the repository, else the built-in one."""
    for path in (directory / "Procfile", Path(__file__).resolve().parents[2] / "Procfile"):
        if path.is_file():
            return Procfile(source=str(path), commands=_parse(_text_of(path), source=str(path)))
    return Procfile(source="built in", commands=_parse(DEFAULT_PROCFILE, source="built in"))


def argv(command: str) -> list[str]:
    """Return the words of a command; no shell reads it, and `python` is this interpreter."""
    words = shlex.split(command)
    return [sys.executable, *words[1:]] if words[0] in ("python", "python3") else words


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise InputError("the Procfile is not UTF-8", file=str(path), mend="save it as UTF-8") from exc
    except OSError as exc:
        raise InputError(f"cannot read the Procfile: {exc.strerror}", file=str(path)) from exc


def _parse(text: str, *, source: str) -> dict[str, str]:
    """Return the commands; honcho's parser passes over what it cannot read, so that is refused first."""
    names: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = PROCFILE_LINE.match(line)
        if match is None:
            raise InputError(
                f"{line.strip()!r} is no process type", file=source, line=number, mend="write `name: command`"
            )
        name, command = match.groups()
        if name in names:
            raise InputError(f"process type '{name}' stands there twice", file=source, line=number, mend="name it once")
        names.add(name)
        try:
            words = shlex.split(command)
        except ValueError as exc:
            problem = f"cannot split the command: {exc}"
            raise InputError(problem, file=source, line=number, mend="close the quote") from exc
        if not words or not words[0]:
            raise InputError("the command names no program", file=source, line=number, mend="write `name: command`")
    if not names:
        raise InputError("the Procfile names no process type", file=source, mend="write `worker: python -m worker`")
    return dict(parse_procfile(text).processes)
