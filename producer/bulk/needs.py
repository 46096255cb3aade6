"""What an assistant's template needs of every row, found out before the first row is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas import AssistantConfig, InputError
from schemas.template import MissingVariableError, TemplateError, render

_BLOCK = re.compile(r"\{\{\{?\{?~?\s*[#^]")
_TAG = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_PLAIN_NAME = re.compile(r"[^\s./@\[\]]+")


@dataclass(frozen=True, slots=True)
class Needs:
    """The variables that a strict assistant needs.

    `names` are printed whatever a row says. `sources` are the templates of which more can
    be missing, by a block's condition or in a nested value: they are rendered for each row.
    """

    names: frozenset[str] = frozenset()
    sources: tuple[str, ...] = ()
    tags: str = ""

    def missing(self, variables: Mapping[str, Any]) -> str | None:
        """Return the path of a variable that is missing; TemplateError if a template cannot be rendered."""
        if not self.names <= variables.keys():
            return min(self.names - variables.keys())
        for source in self.sources:
            try:
                render(source, variables, strict=True)
            except MissingVariableError as exc:
                return exc.path
        return None

    def mentions(self, name: str) -> bool:
        """Return whether a tag of the templates has the name in it."""
        return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", self.tags) is not None


def needs_of(assistant: AssistantConfig) -> Needs:
    """Return what an assistant needs; nothing if it is not strict about variables.

    Raises InputError for a template that parses but cannot be rendered.
    """
    if not assistant.strict_variables:
        return Needs()
    names: set[str] = set()
    sources = []
    templates = [assistant.instructions, *(text for message in assistant.template for text in message.texts)]
    for source in templates:
        if "{{" not in source:
            continue
        plain = None if _BLOCK.search(source) else _plain_names(source, assistant=assistant.assistant)
        if plain is None:
            sources.append(source)
        else:
            names |= plain
    tags = " ".join(tag for source in templates for tag in _TAG.findall(source))
    return Needs(frozenset(names), tuple(sources), tags)


def _plain_names(source: str, *, assistant: str) -> set[str] | None:
    """Return the variables that a template without blocks prints; None if one is a nested path.

    The engine is asked, not the text: it says one missing variable after the other.
    """
    given: dict[str, Any] = {}
    while True:
        try:
            render(source, given, strict=True)
        except MissingVariableError as exc:
            if exc.path in given or not _PLAIN_NAME.fullmatch(exc.path):
                return None
            given[exc.path] = ""
        except TemplateError as exc:
            raise InputError(
                f"the template of {assistant} cannot be rendered: {exc}", mend="mend the template of the assistant"
            ) from exc
        else:
            return set(given)
