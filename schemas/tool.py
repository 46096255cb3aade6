"""The tools of an assistant, as its file or a job names them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from schemas import template
from schemas.schema_safety import refuse_bad_schema, written

# What OpenAI allows for a function's name.
ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
# A secret is named, never written: its value is the worker's `ASSISTQ_SECRET_<NAME>`.
SecretName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]

DEFAULT_TIMEOUT_S = 30.0


class _Tool(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ToolName
    timeout_s: float = Field(default=DEFAULT_TIMEOUT_S, gt=0, le=600)


class _Described(_Tool):
    description: str = Field(default="", max_length=4096)
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})

    @field_validator("parameters")
    @classmethod
    def _is_a_schema(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        refuse_bad_schema(parameters, name="parameters")
        return parameters


class HttpAction(_Described):
    """An HTTP request that a model may make (CONTRACT.md decision 78).

    `url`, `headers` and the strings in `body` are templates over the call's arguments;
    `{{ secret }}` in a header or the body is the value of the named secret. In `url` an
    argument is percent-encoded. Without a body, a POST, PUT or PATCH sends the arguments as
    JSON.
    """

    type: Literal["http"]
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    url: str = Field(pattern=r"^https?://", max_length=2048)
    headers: dict[str, str] = Field(default_factory=dict)
    body: Any = None
    secret: SecretName | None = None

    @model_validator(mode="after")
    def _templates_parse(self) -> Self:
        for source in (self.url, *self.headers.values()):
            template.check(source)
        written(self.body, name="body")
        return self


class PythonTool(_Tool):
    """A Python function that is installed beside the worker, in the entry-point group `assistq.tools`."""

    type: Literal["python"]


class McpServer(_Tool):
    """An MCP server, all or some of whose tools the model may call.

    Either `command` (spoken to over stdio) or `url` (streamable HTTP). Its tools are offered
    as `<name>_<tool>`. `tools` restricts them.
    """

    type: Literal["mcp"]
    command: tuple[str, ...] | None = Field(default=None, min_length=1)
    env: dict[str, str] = Field(default_factory=dict)
    url: str | None = Field(default=None, pattern=r"^https?://")
    headers: dict[str, str] = Field(default_factory=dict)
    secret: SecretName | None = None
    tools: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _one_transport(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("an mcp tool needs `command` (stdio) or `url` (streamable HTTP), and not both")
        return self


class ClientTool(_Described):
    """A tool that the caller runs: its calls end the job, and the answers come with the thread's next job.

    With `strict` a provider that can is to keep to the parameters' schema, in OpenAI's way.
    """

    type: Literal["function"]
    strict: bool | None = None


ToolSpec = Annotated[HttpAction | PythonTool | McpServer | ClientTool, Field(discriminator="type")]


class NamedFunction(BaseModel):
    """The function of a tool_choice that names one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str


class NamedToolChoice(BaseModel):
    """A tool_choice that names one function, in OpenAI's form."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["auto", "required", "none"] | NamedToolChoice
