"""An assistant as Langtail shows it: its "playground state", and where its environments point (CONTRACT row 42)."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel

from schemas.assistant import AssistantConfig
from schemas.tables import AssistantEnvironment
from schemas.tool import ClientTool, HttpAction, McpServer, ToolSpec

_ARGS = (
    "max_tokens",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "tool_choice",
    "reasoning_effort",
)


class TemplateMessageShown(BaseModel):
    """A message of the template, as it was stored."""

    role: str
    content: str | list[dict[str, Any]]


class ChatState(BaseModel):
    """The stored assistant: `args` has only what it sets."""

    type: Literal["chat"] = "chat"
    template: list[TemplateMessageShown]
    tools: list[dict[str, Any]]
    functions: list[dict[str, Any]]
    args: dict[str, Any]


class PlaygroundState(BaseModel):
    """An assistant's configuration; `chatInput` are the defaults of its variables, as text."""

    state: ChatState
    chatInput: dict[str, str]  # noqa: N815 - the name on the wire


class Deployment(BaseModel):
    """Where an environment of an assistant points."""

    deployedAt: str  # noqa: N815 - the name on the wire
    promptSlug: str  # noqa: N815 - the name on the wire
    projectSlug: str  # noqa: N815 - the name on the wire
    environment: str
    version: str


class Deployments(BaseModel):
    """All that the key may use."""

    deployments: list[Deployment]


def playground_state(config: AssistantConfig, *, default_model: str | None) -> PlaygroundState:
    """Return the configuration; of what a tool does on the server nothing is shown but that it runs there."""
    template = [TemplateMessageShown(role="system", content=config.instructions)] if config.instructions else []
    for message in config.template:
        parts = message.content
        content = parts if isinstance(parts, str) else [part.model_dump() for part in parts]
        template.append(TemplateMessageShown(role=message.role, content=content))
    # The SDK's own body builder reads the stop list and the model of these.
    args: dict[str, Any] = {"model": config.model or default_model or "", "stop": list(config.stop or ())}
    args |= {name: value for name, value in config.model_dump(include=set(_ARGS)).items() if value is not None}
    if config.response_format == {"type": "json_object"}:
        args["jsonmode"] = True
    tools = [_shown(tool) for tool in config.tools or () if not isinstance(tool, McpServer)]
    return PlaygroundState(
        state=ChatState(template=template, tools=tools, functions=[], args=args),
        chatInput={name: _as_text(value) for name, value in config.variables.items()},
    )


def deployment(pointer: AssistantEnvironment) -> Deployment:
    """Return where an environment points."""
    _, project, slug = pointer.address.split("/")
    return Deployment(
        deployedAt=iso(pointer.updated_at),
        promptSlug=slug,
        projectSlug=project,
        environment=pointer.environment,
        version=str(pointer.version),
    )


def iso(at: Any) -> str:
    """Return a UTC time as JavaScript writes it."""
    return str(at.isoformat(timespec="milliseconds")).replace("+00:00", "Z")


def _shown(tool: ToolSpec) -> dict[str, Any]:
    """Return the tool in OpenAI's form; what a Python function takes only its worker knows."""
    function: dict[str, Any] = {"name": tool.name}
    if isinstance(tool, ClientTool | HttpAction):
        function |= {"description": tool.description, "parameters": tool.parameters}
    else:
        function |= {"description": "", "parameters": {"type": "object", "properties": {}}}
    if not isinstance(tool, ClientTool):
        function["handler"] = {"enabled": True}
    return {"type": "function", "function": function}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
