"""Python functions that are installed beside the worker, in the entry-point group `assistq.tools`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, to_json

from schemas.tool import PythonTool
from worker.tools.base import ToolDefinition, ToolsUnavailable
from worker.tools.in_thread import in_thread
from worker.tools.signature import Signature
from worker.tools.tool import ToolFailed

GROUP = "assistq.tools"
_DESCRIPTION_MAX_CHARS = 4096


class PythonFunctions:
    """The installed functions, each loaded when it is first asked for."""

    def __init__(self, find: Callable[[], Iterable[EntryPoint]] = lambda: entry_points(group=GROUP)) -> None:
        """Look for entry points with this, once."""
        self._find = find
        self._found: dict[str, list[EntryPoint]] | None = None
        self._loaded: dict[str, _Function] = {}

    def tool(self, spec: PythonTool) -> FunctionTool:
        """Return the function as a tool; raises ToolsUnavailable."""
        if spec.name not in self._loaded:
            self._loaded[spec.name] = _load(self._entry_point(spec.name))
        return FunctionTool(self._loaded[spec.name], spec)

    def _entry_point(self, name: str) -> EntryPoint:
        if self._found is None:
            self._found = {}
            for each in self._find():
                self._found.setdefault(each.name, []).append(each)
        found = self._found.get(name, [])
        if not found:
            raise ToolsUnavailable(
                f"the Python tool '{name}' is not installed; "
                f"install a package that has '{name}' in its entry-point group '{GROUP}'",
                configuration=True,
            )
        if len(found) > 1:
            values = " and ".join(each.value for each in found)
            raise ToolsUnavailable(
                f"more than one Python tool is installed as '{name}': {values}; uninstall one", configuration=True
            )
        return found[0]


class _Function:
    """A loaded function and what a model is told of it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.signature = Signature(function)
        self.description = (inspect.getdoc(function) or "")[:_DESCRIPTION_MAX_CHARS]
        # A callable object's `__call__` may be the coroutine function.
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - not whether, but which
        )


def _load(entry_point: EntryPoint) -> _Function:
    try:
        return _Function(entry_point.load())
    except Exception as exc:
        raise ToolsUnavailable(
            f"the Python tool '{entry_point.name}' ({entry_point.value}) cannot be used: {type(exc).__name__}: {exc}",
            configuration=True,
        ) from exc


class FunctionTool:
    """One Python function of a job."""

    def __init__(self, loaded: _Function, spec: PythonTool) -> None:
        """Offer the function under the spec's name."""
        self._function = loaded.function
        self._signature = loaded.signature
        self._is_async = loaded.is_async
        self.definition = ToolDefinition(
            name=spec.name, description=loaded.description, parameters=loaded.signature.parameters
        )
        self.timeout_s = spec.timeout_s

    def mask(self, text: str) -> str:
        """Return the text: a function is given no secret."""
        return text

    async def call(self, arguments: dict[str, Any], *, key: str | None = None) -> str:  # noqa: ARG002 - it knows none
        """Call the function, a synchronous one in a thread; a string is the answer as it is, all else as JSON."""
        try:
            keywords = self._signature.validated(arguments)
        except ValidationError as exc:
            raise ToolFailed(f"the arguments do not fit the tool's parameters: {_faults(exc)}") from exc
        value = await self._value(keywords)
        if isinstance(value, str):
            return value
        try:
            return to_json(value).decode()
        except (PydanticSerializationError, ValueError) as exc:
            raise ToolFailed(f"it returned a {type(value).__name__}, which cannot be written as JSON: {exc}") from exc

    async def _value(self, keywords: dict[str, Any]) -> Any:
        try:
            if self._is_async:
                return await self._function(**keywords)
            value = await in_thread(lambda: self._function(**keywords))
            return await value if inspect.isawaitable(value) else value
        except SystemExit as exc:
            # It would end the worker.
            raise ToolFailed(f"it wanted to exit: {exc}") from exc
        except (Exception, asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as exc:
            # Nothing above takes such a one for the tool's: the job would come back for ever.
            raise RuntimeError(f"{type(exc).__name__}: {exc}") from exc


def _faults(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
        for fault in error.errors(include_url=False, include_context=False, include_input=False)
    )
