"""Read a YAML file that a person wrote: its value, and the line of everything in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic_core import ErrorDetails
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from schemas.errors import InputError

# Such a file is a page of text; anything near this size is the wrong file.
YAML_FILE_MAX_BYTES = 4 * 1_048_576

_NODES_MAX = 100_000

Location = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file should be, for the words of its errors: `name` as in "an assistant file", and how to mend one."""

    name: str
    when_missing: str
    when_directory: str
    when_empty: str
    when_no_mapping: str


@dataclass(frozen=True, slots=True)
class YamlFile:
    """A file that is YAML and a mapping: its value, and its nodes, which know their lines."""

    file: str
    root: yaml.MappingNode
    value: Any

    def line_of(self, loc: Location, *, of_key: bool = False) -> int:
        """Return the physical line of a location, or of the deepest part of it that the file has.

        Of a scalar that is the line of its value, else the line of the key.
        """
        node: yaml.Node = self.root
        line = _line(self.root)
        for part in loc:
            found = _child(node, part)
            if found is None:
                break
            line = _line(found[1]) if isinstance(found[1], yaml.ScalarNode) and not of_key else _line(found[0])
            node = found[1]
        return line

    def problem(self, error: ErrorDetails, *, what: str, mend: str) -> InputError:
        """Return what is wrong with the place of one of Pydantic's errors."""
        line = self.line_of(error["loc"], of_key=error["type"] in ("extra_forbidden", "invalid_key"))
        return InputError(what, file=self.file, line=line, mend=mend)


def read(path: Path, kind: FileKind) -> YamlFile:
    """Return the file; raises InputError for one that cannot be read or parsed, or is no mapping."""
    file = str(path)
    root, value = _parse(_text_of(path, kind, file=file), kind, file=file)
    return YamlFile(file=file, root=root, value=value)


def wrong_value(error: ErrorDetails) -> tuple[str, str]:
    """Return what is wrong with a value, and how to mend it, for the errors that all files have in common."""
    name, kind = dotted(error["loc"]), error["type"]
    if kind in _TYPES:
        must, mend = _TYPES[kind]
        mend = _mend_of_text(error["input"]) if kind == "string_type" else mend
        return f"'{name}' must be {must}, not {shown(error['input'])}", mend
    must = str(error["msg"]).removeprefix("Input should ").removeprefix("String should ")
    return f"'{name}' should {must}, not {shown(error['input'])}", f"set '{name}' to such a value"


def _text_of(path: Path, kind: FileKind, *, file: str) -> str:
    try:
        with path.open("rb") as stream:
            raw = stream.read(YAML_FILE_MAX_BYTES + 1)
    except FileNotFoundError as exc:
        raise InputError("no such file", file=file, mend=kind.when_missing) from exc
    except IsADirectoryError as exc:
        raise InputError("is a directory", file=file, mend=kind.when_directory) from exc
    except OSError as exc:
        raise InputError(
            f"cannot be read: {exc.strerror}", file=file, mend="check the path and its permissions"
        ) from exc
    if len(raw) > YAML_FILE_MAX_BYTES:
        raise InputError(
            f"is larger than {YAML_FILE_MAX_BYTES:,} bytes", file=file, mend=f"check that it is {kind.name}"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InputError(
            f"not UTF-8: byte 0x{raw[exc.start]:02x} at offset {exc.start}",
            file=file,
            line=raw.count(b"\n", 0, exc.start) + 1,
            mend="save the file as UTF-8",
        ) from exc


class _Loader(yaml.SafeLoader):
    """SafeLoader that leaves dates as text and gives every bad scalar its line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value of a node; a scalar that Python cannot hold is a ConstructorError."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, OverflowError) as exc:
            raise ConstructorError(None, None, str(exc), node.start_mark) from exc


# Nothing in these files is a date, so 2026-11-21 is what its author typed: text.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _parse(text: str, kind: FileKind, *, file: str) -> tuple[yaml.MappingNode, Any]:
    """Return the file's node tree, which knows the lines, and its value."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise InputError("is empty", file=file, mend=kind.when_empty)
        if not isinstance(root, yaml.MappingNode):
            raise InputError(
                f"{kind.name} is a mapping, `key: value` lines",
                file=file,
                line=_line(root),
                mend=kind.when_no_mapping,
            )
        _check_nodes(root, file=file, sizes={})
        return root, loader.construct_document(root)
    except ReaderError as exc:
        raise InputError(
            f"a character that YAML does not allow: {chr(exc.character)!r}",
            file=file,
            line=text.count("\n", 0, exc.position) + 1,
            mend="remove it",
        ) from exc
    except yaml.MarkedYAMLError as exc:
        _refuse_yaml(exc, file=file)
    except RecursionError as exc:
        raise InputError("is nested too deeply", file=file, mend="flatten it") from exc


def _refuse_yaml(exc: yaml.MarkedYAMLError, *, file: str) -> NoReturn:
    mark = exc.problem_mark or exc.context_mark
    what = " ".join(part for part in (exc.context, exc.problem) if part)
    raise InputError(
        f"not valid YAML: {what}" + (f" (character {mark.column + 1})" if mark else ""),
        file=file,
        line=mark.line + 1 if mark else None,
        mend="check indentation, colons and quotes there; quote text that holds `: `, `#` or starts with `{`",
    ) from exc


def _check_nodes(node: yaml.Node, *, file: str, sizes: dict[int, int | None]) -> int:
    """Return how many nodes a node stands for, aliases written out.

    Raises InputError for a key that stands twice in one mapping, of which YAML would keep
    the last, for an alias that holds itself, and for aliases that multiply without end.
    `sizes` has None for the nodes that are being looked at.
    """
    if id(node) in sizes:
        known = sizes[id(node)]
        if known is None:
            raise InputError("an alias refers to itself", file=file, line=_line(node), mend="write the value out")
        return known
    sizes[id(node)] = None
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        _refuse_duplicate_keys(node, file=file)
        children = [value for _, value in node.value]
    size = 1 + sum(_check_nodes(child, file=file, sizes=sizes) for child in children)
    if size > _NODES_MAX:
        raise InputError(f"holds more than {_NODES_MAX:,} values", file=file, line=_line(node), mend="shorten it")
    sizes[id(node)] = size
    return size


def _refuse_duplicate_keys(node: yaml.MappingNode, *, file: str) -> None:
    first_lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if key.value in first_lines:
            raise InputError(
                f"key '{key.value}' stands here and in line {first_lines[key.value]}",
                file=file,
                line=_line(key),
                mend="keep one of the two",
            )
        first_lines[key.value] = _line(key)


_NUMBER = "write a number, without quotes or units"
_LIST = "write a list: `- item` lines, or [first, second]"
_MAPPING = "write `key: value` lines under it"
# Pydantic's type of error -> (what the value must be, how to mend it)
_TYPES: dict[str, tuple[str, str]] = {
    "string_type": ("text", "put it in quotes"),
    "int_type": ("a whole number", _NUMBER),
    "int_parsing": ("a whole number", _NUMBER),
    "int_from_float": ("a whole number", _NUMBER),
    "float_type": ("a number", _NUMBER),
    "float_parsing": ("a number", _NUMBER),
    "bool_type": ("true or false", "write true or false"),
    "bool_parsing": ("true or false", "write true or false"),
    "tuple_type": ("a list", _LIST),
    "dict_type": ("a mapping", _MAPPING),
    "model_type": ("a mapping", _MAPPING),
}


def _mend_of_text(value: Any) -> str:
    if isinstance(value, bool):
        return "put it in quotes: YAML reads an unquoted yes, no, on or off as true or false"
    if value is None:
        return "write a value after the colon, or remove the key"
    if isinstance(value, dict | list):
        return "put text that begins with `{` or `[` in quotes"
    return "put it in quotes"


def shown(value: Any) -> str:
    """Return a value as it is quoted in an error."""
    if value is None:
        return "empty"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def dotted(loc: Location) -> str:
    """Return `template[0].content` for ("template", 0, "content")."""
    parts = [f"[{part}]" if isinstance(part, int) and position else f".{part}" for position, part in enumerate(loc)]
    return "".join(parts).removeprefix(".")


def _child(node: yaml.Node, part: int | str) -> tuple[yaml.Node, yaml.Node] | None:
    """Return a key and its value, or a list's item twice."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == str(part):
                return key, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
