"""Prepare: from a job and its assistant to what will be sent. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from schemas import template
from schemas.assistant import AssistantConfig, JobTemplateMessage, ProviderKind, TemplateMessage
from schemas.chat import Message, Part, TextPart
from schemas.job import InvokeJob, JobRecord
from schemas.outcome import Code, Failed
from schemas.output import OutputSpec
from schemas.parameters import Parameters
from schemas.template_budget import Budget
from schemas.tool import ToolSpec
from worker.flow.history import bounded, unanswered_calls
from worker.store.base import JobContext, StoredAssistant

# What a job asks for in JSON mode goes along as a message too (CONTRACT.md 1.4, rule 4).
JSON_MODE_REMINDER = Message(role="system", content="format: JSON")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job that is ready to be sent.

    `instructions` are rendered; `own` are they, as a system message where the provider is sent
    one, and the rendered template; `history` is the thread, `asked` are
    the job's messages; they are sent in this order. `parameters` are the assistant's with
    the job's over them; `thread_ref` is the name that a hosted assistant gave the thread.
    """

    assistant: StoredAssistant
    provider: ProviderKind
    model: str
    instructions: str
    own: tuple[Message, ...]
    history: tuple[Message, ...]
    asked: tuple[Message, ...]
    parameters: Parameters
    variables: dict[str, Any]
    output: OutputSpec | None
    tools: tuple[ToolSpec, ...]
    max_steps: int
    thread_ref: str | None

    @property
    def messages(self) -> tuple[Message, ...]:
        """Return all that is sent before anything was answered."""
        return (*self.own, *self.history, *self.asked)

    @property
    def config(self) -> AssistantConfig:
        """Return the assistant's configuration."""
        return self.assistant.config


def prepare(record: JobRecord, context: JobContext, *, default_model: str | None) -> Prepared | Failed:
    """Put together what the job sends.

    A job whose own content is at fault is Failed here, before anything is paid for.
    """
    job = record.job
    if record.rejection is not None:
        return Failed(code=record.rejection.code, error=record.rejection.error)
    if context.is_of_others:
        return Failed(code=Code.THREAD_UNKNOWN, error=f"thread '{job.thread_id}' is not known")
    if context.assistant is None:
        return Failed(code=Code.ASSISTANT_UNKNOWN, error=_unknown_assistant(job))
    config = context.assistant.config
    parameters = _merged(config, job)
    model = parameters.model or (default_model if config.provider == "openai" else config.provider)
    if model is None:
        return Failed(
            code=Code.MODEL_UNKNOWN,
            error=f"assistant {config.assistant} names no model and ASSISTQ_MODEL is not set; name one of the two",
        )
    variables = {**config.variables, **job.variables}
    strict = config.strict_variables if job.strict_variables is None else job.strict_variables
    # One for all of the job's messages: a job may have as many as it likes.
    budget = Budget()
    try:
        seen = template.variables_of(variables, budget=budget)
        render = partial(template.render, variables=seen, strict=strict, budget=budget)
        instructions = render(config.instructions)
        own = _rendered(instructions, config, job, render)
    except template.MissingVariableError as exc:
        return Failed(
            code=Code.MISSING_VARIABLE,
            error=f"the template needs variable '{exc.path}', which neither the job nor the assistant gives",
        )
    except template.TemplateError as exc:
        return Failed(code=Code.BAD_TEMPLATE, error=str(exc))
    history = bounded(context.history, limit_tokens=config.history_tokens)
    missing = unanswered_calls((*history, *job.messages))
    if missing:
        return Failed(
            code=Code.TOOL_ANSWERS_MISSING,
            error=f"the thread waits for the answers to tool calls {', '.join(sorted(missing))}; "
            "send them as tool messages",
        )
    says_something = any(message.role != "system" for message in (*own, *history, *job.messages))
    if config.provider == "openai" and not says_something:
        return Failed(
            code=Code.NOTHING_TO_SEND,
            error=f"assistant {config.assistant} has no template and the job has no message; give one of the two",
        )
    json_mode = parameters.response_format == {"type": "json_object"}
    return Prepared(
        assistant=context.assistant,
        provider=config.provider,
        model=model,
        instructions=instructions,
        own=tuple(own),
        history=history,
        asked=(*job.messages, JSON_MODE_REMINDER) if json_mode else job.messages,
        parameters=parameters,
        variables=variables,
        output=job.output or config.output,
        tools=parameters.tools or (),
        max_steps=job.max_steps or config.max_steps,
        thread_ref=context.provider_refs.get(config.provider),
    )


def _merged(config: AssistantConfig, job: InvokeJob) -> Parameters:
    """Return the assistant's parameters with those that the job sets over them; -1 takes max_tokens away."""
    names = Parameters.model_fields
    merged = {name: getattr(config, name) for name in names}
    merged |= {name: getattr(job, name) for name in names if getattr(job, name) is not None}
    if merged["max_tokens"] == -1:
        merged["max_tokens"] = None
    return Parameters.model_construct(**merged)


def _rendered(
    instructions: str, config: AssistantConfig, job: InvokeJob, render: Callable[[str], str]
) -> list[Message]:
    # A service that hosts the assistant has its instructions already, or gets them by themselves.
    sent = instructions and config.provider == "openai"
    messages = [Message(role="system", content=instructions)] if sent else []
    parts = config.template if job.template is None else job.template
    return messages + [_rendered_message(part, render) for part in parts]


def _rendered_message(message: TemplateMessage | JobTemplateMessage, render: Callable[[str], str]) -> Message:
    content = message.content
    if isinstance(content, str):
        content = render(content)
    elif content is not None:
        content = tuple(_rendered_part(part, render) for part in content)
    if isinstance(message, TemplateMessage):
        return Message(role=message.role, content=content)
    return Message(**{**dict(message), "content": content})


def _rendered_part(part: Part, render: Callable[[str], str]) -> Part:
    return TextPart(text=render(part.text)) if isinstance(part, TextPart) else part


def _unknown_assistant(job: InvokeJob) -> str:
    wanted = f"environment '{job.environment}'" if job.version is None else f"version {job.version}"
    return f"assistant {job.address} has no {wanted}; store it with `assistq assistants apply`"
