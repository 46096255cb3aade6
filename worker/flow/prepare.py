"""Prepare: from a job and its assistant to the request that will be sent. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from schemas import template
from schemas.assistant import AssistantConfig
from schemas.chat import Message
from schemas.job import JobRecord
from schemas.lane import Lane
from schemas.outcome import Code, Failed
from schemas.output import OutputSpec
from worker.flow.output import wire_schema
from worker.providers.base import ChatRequest
from worker.store.base import JobContext, StoredAssistant


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job that is ready to be sent."""

    assistant: StoredAssistant
    lane: Lane
    output: OutputSpec | None
    request: ChatRequest


def prepare(
    record: JobRecord, context: JobContext, *, provider_name: str, default_model: str | None
) -> Prepared | Failed:
    """Build the request: instructions, template, thread, messages, in this order.

    A job whose own content is at fault is Failed here, before anything is paid for.
    """
    if record.rejection is not None:
        return Failed(code=record.rejection.code, error=record.rejection.error)
    if context.assistant is None:
        return Failed(code=Code.ASSISTANT_UNKNOWN, error=_unknown_assistant(record))
    config = context.assistant.config
    model = config.model or default_model
    if model is None:
        return Failed(
            code=Code.MODEL_UNKNOWN,
            error=f"assistant {config.assistant} names no model and ASSISTQ_MODEL is not set; name one of the two",
        )
    try:
        own = _rendered(config, record)
    except template.MissingVariableError as exc:
        return Failed(
            code=Code.MISSING_VARIABLE, error=f"the template needs variable '{exc.path}', which the job does not give"
        )
    except template.TemplateError as exc:
        return Failed(code=Code.BAD_TEMPLATE, error=str(exc))
    messages = (*own, *context.history, *record.job.messages)
    if not any(message.role != "system" for message in messages):
        return Failed(
            code=Code.NOTHING_TO_SEND,
            error=f"assistant {config.assistant} has no template and the job has no message; give one of the two",
        )
    output = record.job.output or config.output
    return Prepared(
        assistant=context.assistant,
        lane=Lane(workspace=record.job.workspace, provider=provider_name, model=model),
        output=output,
        request=ChatRequest(
            model=model,
            messages=messages,
            response_schema=None if output is None else wire_schema(output),
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=config.seed,
            stop=config.stop,
        ),
    )


def _rendered(config: AssistantConfig, record: JobRecord) -> list[Message]:
    variables, strict = record.job.variables, config.strict_variables
    messages = []
    if config.instructions:
        messages.append(Message(role="system", content=template.render(config.instructions, variables, strict=strict)))
    messages += [
        Message(role=part.role, content=template.render(part.content, variables, strict=strict))
        for part in config.template
    ]
    return messages


def _unknown_assistant(record: JobRecord) -> str:
    job = record.job
    wanted = f"environment '{job.environment}'" if job.version is None else f"version {job.version}"
    return f"assistant {job.assistant} has no {wanted}; store it with `assistq assistants apply`"
