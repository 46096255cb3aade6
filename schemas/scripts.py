"""The Lua scripts that run in Redis: read from the packages, with the preludes that they share.

A script's first line says how the server is to run it:

    #!lua                   refused as a whole while the server's memory is full (`maxmemory`)
    #!lua flags=allow-oom   runs all the same: it ends, keeps or frees what is there already

The server judges memory, disk and role once, before the first line runs, so that no script stops
in its middle.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

# The first that knows such a line. Every Valkey does, and calls itself 7.2.
OLDEST_SERVER = (7, 0)
_PRELUDE_MARK = "-- prelude: "
_SHEBANG = "#!"


def read_script(package: str, name: str) -> str:
    """Return the script `name` of a package, with its preludes in front.

    A line `-- prelude: schemas/lines.lua` in its head names one, by package and file.
    """
    text = resources.files(package).joinpath(name).read_text("utf-8")
    marked = [line.removeprefix(_PRELUDE_MARK) for line in text.splitlines() if line.startswith(_PRELUDE_MARK)]
    return joined(*map(_prelude, marked), text)


def joined(*texts: str) -> str:
    """Return the texts as one script; how the server is to run it says the first line of the last."""
    *preludes, script = texts
    first, _, rest = script.partition("\n")
    if not first.startswith(_SHEBANG):
        return "\n".join(texts)
    return "\n".join([first, *preludes, rest])


def refusal_of_server(told: Mapping[str, Any]) -> str | None:
    """Return why the scripts cannot run on a server that tells this of itself (`INFO server`); None if they can."""
    version = str(told.get("redis_version", ""))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not numbers or numbers >= OLDEST_SERVER:
        return None
    oldest = ".".join(map(str, OLDEST_SERVER))
    return f"the Redis server is version {version}; assistq needs Redis {oldest} or newer, or Valkey"


def _prelude(place: str) -> str:
    folder, _, name = place.rpartition("/")
    return resources.files(folder.replace("/", ".")).joinpath(name).read_text("utf-8")
