"""Read an assistant file: YAML in, AssistantConfig out, every problem with its line."""

from __future__ import annotations

import difflib
from pathlib import Path

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from schemas import AssistantConfig, InputError, OutputSpec, TemplateMessage
from schemas.errors import InputErrors
from schemas.yaml_file import YAML_FILE_MAX_BYTES, FileKind, Location, YamlFile, dotted, read, shown, wrong_value

ASSISTANT_FILE_MAX_BYTES = YAML_FILE_MAX_BYTES

_KIND = FileKind(
    name="an assistant file",
    when_missing="check the path of the assistant file",
    when_directory="name the assistant's YAML file in it",
    when_empty="describe an assistant: `assistant:`, `template:`, …",
    when_no_mapping="begin with `assistant: workspace/project/name`",
)


def load(path: Path) -> AssistantConfig:
    """Return the assistant that a YAML file describes.

    Raises InputError for a file that cannot be read or parsed, and InputErrors, one
    problem for each wrong key or value, for a file that is YAML but no assistant.
    """
    source = read(path, _KIND)
    try:
        return AssistantConfig.model_validate(source.value)
    except ValidationError as exc:
        problems = [_problem(error, source) for error in exc.errors(include_url=False)]
        raise InputErrors(sorted(problems, key=lambda problem: problem.line or 0)) from exc


def _problem(error: ErrorDetails, source: YamlFile) -> InputError:
    """Translate one error of Pydantic's into what is wrong, the line, and the mend."""
    loc = error["loc"]
    name = dotted(loc)
    match error["type"]:
        case "extra_forbidden" | "invalid_key":
            what, mend = f"unknown key '{name}'", _closest(loc)
        case "missing":
            what, mend = f"key '{name}' is missing", f"add `{loc[-1]}:`"
        case "value_error":
            what, mend = str(error["msg"]).removeprefix("Value error, "), _mend_of_value_error(loc)
            what = f"'{name}': {what}" if name else what
        case "string_pattern_mismatch":
            what, mend = f"'{name}' cannot be {shown(error['input'])}", _mend_of_pattern(loc)
        case _:
            what, mend = wrong_value(error)
    return source.problem(error, what=what, mend=mend)


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
    return f"set '{dotted(loc)}' to a value that is allowed"


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
