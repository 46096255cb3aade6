"""Which JSON Schemas are safe to validate with: valid, local, and of bounded cost.

A schema comes from users and is run for every reply. Draft 2020-12.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

import jsonschema_rs

MAX_BYTES = 256 * 1024
MAX_DEPTH = 64
# How many subschemas may apply to one value at one place, references followed.
MAX_APPLIED = 10_000

# Keywords whose subschemas apply to the same value, not to a part of it.
_IN_PLACE_ONE = ("not", "if", "then", "else")
_IN_PLACE_MANY = ("allOf", "anyOf", "oneOf")
_IN_PLACE_NAMED = ("dependentSchemas",)


def refuse_bad_schema(schema: dict[str, Any], *, name: str) -> None:
    """Raise ValueError unless the schema is valid, stays within itself, and cannot explode or loop."""
    if len(written(schema, name=name)) > MAX_BYTES:
        raise ValueError(f"`{name}` is larger than {MAX_BYTES // 1024} KiB")
    _refuse_depth(schema, name=name)
    # First, because the library would follow them.
    _refuse_foreign_references(schema, name=name)
    try:
        if "$schema" in schema:
            # By itself and offline, because the next check would ask the host of an unknown one.
            jsonschema_rs.validator_for({"$schema": schema["$schema"]}, offline=True)
        jsonschema_rs.meta.validate(schema)
    except jsonschema_rs.ValidationError as exc:
        raise ValueError(f"`{name}` is no valid JSON Schema: {exc.message}") from exc
    _Applied(schema, name=name).check()
    try:
        jsonschema_rs.validator_for(schema, offline=True)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as exc:
        words = exc.message if isinstance(exc, jsonschema_rs.ValidationError) else str(exc)
        raise ValueError(f"`{name}` cannot be used: {words}") from exc


def written(value: Any, *, name: str) -> bytes:
    """Return the value as JSON; ValueError for what cannot be sent as such: NaN, a lone surrogate."""
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise ValueError(f"`{name}` cannot be written as JSON: {exc}") from exc


def _refuse_depth(node: Any, *, name: str) -> None:
    level = [node]
    for _ in range(MAX_DEPTH):
        level = [child for each in level for child in _children(each)]
        if not level:
            return
    raise ValueError(f"`{name}` is nested deeper than {MAX_DEPTH} levels")


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def _refuse_foreign_references(node: Any, *, name: str) -> None:
    """Refuse a reference that leaves the document: a worker must not fetch what a job names."""
    if isinstance(node, dict):
        for keyword in ("$ref", "$dynamicRef"):
            reference = node.get(keyword)
            if isinstance(reference, str) and not reference.startswith("#"):
                raise ValueError(f"`{name}` refers to {reference!r}, outside itself; inline it under `$defs`")
    for child in _children(node):
        _refuse_foreign_references(child, name=name)


class _Applied:
    """Counts what applies in place, which a loop or a doubling of references makes endless or huge."""

    def __init__(self, root: dict[str, Any], *, name: str) -> None:
        self._root = root
        self._name = name
        self._counts: dict[int, int] = {}
        self._open: set[int] = set()
        self._anchors = _anchors(root)

    def check(self) -> None:
        try:
            self._walk(self._root)
        except RecursionError as exc:
            # Before the validator meets it, whose stack has no such guard.
            raise ValueError(f"`{self._name}` has a chain of references that is too long") from exc

    def _walk(self, node: Any) -> None:
        self._count(node)
        for child in _children(node):
            self._walk(child)

    def _count(self, node: Any) -> int:
        if not isinstance(node, dict):
            return 1
        key = id(node)
        if key in self._counts:
            return self._counts[key]
        if key in self._open:
            raise ValueError(f"`{self._name}` refers to itself without an end; let the reference go through a property")
        self._open.add(key)
        total = 1 + sum(self._count(child) for child in self._in_place(node))
        self._open.discard(key)
        if total > MAX_APPLIED:
            raise ValueError(f"`{self._name}` applies more than {MAX_APPLIED} subschemas to one value")
        self._counts[key] = total
        return total

    def _in_place(self, node: dict[str, Any]) -> list[Any]:
        children = [node[keyword] for keyword in _IN_PLACE_ONE if keyword in node]
        for keyword in _IN_PLACE_MANY:
            children += node[keyword] if isinstance(node.get(keyword), list) else []
        for keyword in _IN_PLACE_NAMED:
            children += node[keyword].values() if isinstance(node.get(keyword), dict) else []
        for keyword in ("$ref", "$dynamicRef"):
            if isinstance(node.get(keyword), str):
                children.append(self._target(node[keyword]))
        return children

    def _target(self, reference: str) -> Any:
        if not reference.startswith("#/") and reference != "#":
            # An anchor: found by the validator; a loop through one is refused there or bounded by depth.
            return self._anchors.get(reference.removeprefix("#"))
        node: Any = self._root
        for part in reference.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(node, list) and name.isdigit() and int(name) < len(node):
                node = node[int(name)]
            elif isinstance(node, dict) and name in node:
                node = node[name]
            else:
                raise ValueError(f"`{self._name}` refers to {reference!r}, which is not in it")
        return node


def _anchors(root: Any) -> dict[str, Any]:
    """Return what each anchor names, found in one walk: a schema may refer to one of them ten thousand times."""
    found: dict[str, Any] = {}
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            for keyword in ("$anchor", "$dynamicAnchor"):
                if isinstance(name := node.get(keyword), str):
                    found.setdefault(name, node)
        waiting += reversed(_children(node))
    return found
