"""The Lua scripts that run in Redis: read from the packages, with the preludes that they share."""

from __future__ import annotations

from importlib import resources

_PRELUDE_MARK = "-- prelude: "


def read_script(package: str, name: str) -> str:
    """Return the script `name` of a package, with its preludes in front.

    A line `-- prelude: schemas/lines.lua` in its head names one, by package and file.
    """
    text = resources.files(package).joinpath(name).read_text("utf-8")
    marked = [line.removeprefix(_PRELUDE_MARK) for line in text.splitlines() if line.startswith(_PRELUDE_MARK)]
    return "".join(_prelude(place) + "\n" for place in marked) + text


def _prelude(place: str) -> str:
    folder, _, name = place.rpartition("/")
    return resources.files(folder.replace("/", ".")).joinpath(name).read_text("utf-8")
