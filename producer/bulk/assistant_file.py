"""Read an assistant file: YAML in, AssistantConfig out, every problem with its line."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from schemas import AssistantConfig, InputError, OutputSpec, TemplateMessage
from schemas.errors import InputErrors

# An assistant is a page of text; anything near this size is the wrong file.
ASSISTANT_FILE_MAX_BYTES = 4 * 1_048_576

_NODES_MAX = 100_000

Location = tuple[int | str, ...]


def load(path: Path) -> AssistantConfig:
    """Return the assistant that a YAML file describes.

    Raises InputError for a file that cannot be read or parsed, and InputErrors, one
    problem for each wrong key or value, for a file that is YAML but no assistant.
    """
    file = str(path)
    root, data = _parse(_text_of(path, file=file), file=file)
    try:
        return AssistantConfig.model_validate(data)
    except ValidationError as exc:
        problems = [_problem(error, root, file=file) for error in exc.errors(include_url=False)]
        raise InputErrors(sorted(problems, key=lambda problem: problem.line or 0)) from exc


def _text_of(path: Path, *, file: str) -> str:
    try:
        with path.open("rb") as stream:
            raw = stream.read(ASSISTANT_FILE_MAX_BYTES + 1)
    except FileNotFoundError as exc:
        raise InputError("no such file", file=file, mend="check the path of the assistant file") from exc
    except IsADirectoryError as exc:
        raise InputError("is a directory", file=file, mend="name the assistant's YAML file in it") from exc
    except OSError as exc:
        raise InputError(
            f"cannot be read: {exc.strerror}", file=file, mend="check the path and its permissions"
        ) from exc
    if len(raw) > ASSISTANT_FILE_MAX_BYTES:
        raise InputError(
            f"is larger than {ASSISTANT_FILE_MAX_BYTES:,} bytes", file=file, mend="check that it is an assistant file"
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


# Nothing in an assistant is a date, so 2026-11-21 is what its author typed: text.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _parse(text: str, *, file: str) -> tuple[yaml.MappingNode, Any]:
    """Return the file's node tree, which knows the lines, and its value."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise InputError("is empty", file=file, mend="describe an assistant: `assistant:`, `template:`, …")
        if not isinstance(root, yaml.MappingNode):
            raise InputError(
                "an assistant file is a mapping, `key: value` lines",
                file=file,
                line=_line(root),
                mend="begin with `assistant: workspace/project/name`",
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


def _problem(error: ErrorDetails, root: yaml.MappingNode, *, file: str) -> InputError:
    """Translate one error of Pydantic's into what is wrong, the line, and the mend."""
    loc = error["loc"]
    name = _dotted(loc)
    match error["type"]:
        case "extra_forbidden" | "invalid_key":
            what, mend = f"unknown key '{name}'", _closest(loc)
        case "missing":
            what, mend = f"key '{name}' is missing", f"add `{loc[-1]}:`"
        case "value_error":
            what, mend = str(error["msg"]).removeprefix("Value error, "), _mend_of_value_error(loc)
            what = f"'{name}': {what}" if name else what
        case "string_pattern_mismatch":
            what, mend = f"'{name}' cannot be {_shown(error['input'])}", _mend_of_pattern(loc)
        case kind if kind in _TYPES:
            must, mend = _TYPES[kind]
            what = f"'{name}' must be {must}, not {_shown(error['input'])}"
            if kind == "string_type":
                mend = _mend_of_text(error["input"])
        case _:
            must = str(error["msg"]).removeprefix("Input should ")
            what, mend = f"'{name}' should {must}, not {_shown(error['input'])}", f"set '{name}' to such a value"
    return InputError(what, file=file, line=_line_of(loc, root, of_key=error["type"] == "extra_forbidden"), mend=mend)


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


def _mend_of_pattern(loc: Location) -> str:
    slug = "letters, digits and . _ -, at most 64 characters"
    if loc == ("assistant",):
        return f"write workspace/project/assistant, each part of {slug}"
    return f"use {slug}"


def _mend_of_value_error(loc: Location) -> str:
    if not loc:
        return "add what is missing, or remove what does not belong"
    if loc[0] in ("template", "instructions"):
        return "close every {{ with }} and every {{#block}} with {{/block}}"
    if loc[0] == "output":
        return "write `{type: enum, enum: [a, b]}`, `{type: object, schema: {…}}` or `{type: array, schema: {…}}`"
    return f"set '{_dotted(loc)}' to a value that is allowed"


def _closest(loc: Location) -> str:
    """Suggest the known key nearest to an unknown one, else list them all."""
    model: type[BaseModel] = AssistantConfig
    if loc[0] == "template" and len(loc) > 1:
        model = TemplateMessage
    elif loc[0] == "output" and len(loc) > 1:
        model = OutputSpec
    known = [field.alias or name for name, field in model.model_fields.items()]
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"remove it, or use one of {', '.join(known)}"


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _dotted(loc: Location) -> str:
    """Return `template[0].content` for ("template", 0, "content")."""
    parts = [f"[{part}]" if isinstance(part, int) and position else f".{part}" for position, part in enumerate(loc)]
    return "".join(parts).removeprefix(".")


def _line_of(loc: Location, root: yaml.MappingNode, *, of_key: bool) -> int:
    """Return the physical line of a location, or of the deepest part of it that the file has.

    Of a scalar that is the line of its value, else the line of the key.
    """
    node: yaml.Node = root
    line = _line(root)
    for part in loc:
        found = _child(node, part)
        if found is None:
            break
        line = _line(found[1]) if isinstance(found[1], yaml.ScalarNode) and not of_key else _line(found[0])
        node = found[1]
    return line


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
