"""The secrets that tools may use: named in a tool, kept in the worker's environment, shown to nobody."""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import quote, quote_plus

from worker.tools.base import ToolsUnavailable

ENV_PREFIX = "ASSISTQ_SECRET_"
MASK = "[secret]"


class Secret:
    """A secret's value, which no `repr` shows; an absent secret masks nothing."""

    def __init__(self, value: str | None) -> None:
        """Keep the value."""
        self._value = value
        self._forms = () if value is None else _forms(value)

    @property
    def variables(self) -> dict[str, str]:
        """Return the template variable `secret`, if there is a secret."""
        return {} if self._value is None else {"secret": self._value}

    def mask(self, text: str) -> str:
        """Return the text with the secret replaced, also where it is URL-encoded or in a JSON string."""
        for form in self._forms:
            text = text.replace(form, MASK)
        return text

    def without_part_at_end(self, text: str) -> str:
        """Return a text that was cut off without the part of the secret that may have stayed at its end."""
        for form in self._forms:
            for length in range(min(len(form) - 1, len(text)), 0, -1):
                if text.endswith(form[:length]):
                    return text[:-length]
        return text


class Secrets:
    """Finds secrets by name among the variables `ASSISTQ_SECRET_<NAME>` of an environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Take the environment."""
        self._environment = environment

    def of(self, tool: str, name: str | None) -> Secret:
        """Return the secret that a tool names; raises ToolsUnavailable if it is not set."""
        if name is None:
            return Secret(None)
        variable = f"{ENV_PREFIX}{name.upper()}"
        value = self._environment.get(variable)
        if not value:
            raise ToolsUnavailable(
                f"the tool '{tool}' needs the secret '{name}', and the worker has none; set {variable} for it",
                configuration=True,
            )
        return Secret(value)


def _forms(value: str) -> tuple[str, ...]:
    """Return the ways in which a value may be written, the longest first."""
    forms = {
        value,
        value.strip(),
        quote(value, safe=""),
        quote(value),
        quote_plus(value),
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
    }
    return tuple(sorted((form for form in forms if form), key=len, reverse=True))
