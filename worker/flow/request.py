"""The request of one step: what was prepared and what was said since, in the provider's terms. Pure."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel

from schemas.chat import Message
from schemas.job import JobRecord
from schemas.output import OutputSpec
from schemas.tool import ToolChoice
from worker.flow.moves import Ask
from worker.flow.output import instruction, wire_schema
from worker.flow.prepare import Prepared
from worker.limits.learned import EstimateKey
from worker.providers.base import ChatRequest, HostedCall, Streams, StructuredOutput
from worker.tools.base import Tools


def request_of(
    record: JobRecord,
    prepared: Prepared,
    ask: Ask,
    tools: Tools,
    *,
    structured: StructuredOutput,
    step_id: str,
    thread_ref: str | None,
    streams: Streams = Streams.COUNTED,
) -> ChatRequest:
    """Build the request; a service that hosts the assistant gets its own part."""
    parameters = prepared.parameters
    by_schema, told = _asked_form(prepared, structured)
    return ChatRequest(
        model=prepared.model,
        messages=(*prepared.messages, *ask.messages, *told),
        response_schema=wire_schema(by_schema) if by_schema else None,
        response_format=parameters.response_format,
        max_tokens=parameters.max_tokens,
        temperature=parameters.temperature,
        top_p=parameters.top_p,
        presence_penalty=parameters.presence_penalty,
        frequency_penalty=parameters.frequency_penalty,
        seed=parameters.seed,
        stop=parameters.stop,
        n=parameters.n,
        tools=tools.definitions,
        tool_choice=_tool_choice(prepared, ask),
        parallel_tool_calls=parameters.parallel_tool_calls,
        user=parameters.user,
        reasoning_effort=parameters.reasoning_effort,
        step_id=step_id,
        hosted=None if prepared.provider == "openai" else _hosted(record, prepared, ask, told, thread_ref=thread_ref),
        streams=streams,
    )


def estimate_key(record: JobRecord, prepared: Prepared) -> EstimateKey:
    """Return which calls this job's are like, as far as their size goes."""
    job = record.job
    return EstimateKey(
        assistant=job.address,
        version=_digest(job.inline) if job.inline else str(prepared.assistant.version),
        # An assistant's own form is part of its version.
        output=_digest(job.output) if job.output else "",
        model=prepared.model,
    )


def _digest(model: BaseModel) -> str:
    return hashlib.blake2b(model.model_dump_json().encode(), digest_size=8).hexdigest()


def _tool_choice(prepared: Prepared, ask: Ask) -> ToolChoice | None:
    """Return the job's choice; once a tool has answered, one that forces calls would never let the model end."""
    chosen = prepared.parameters.tool_choice
    answered = any(message.role == "tool" for message in ask.messages)
    return "auto" if answered and chosen not in (None, "auto", "none") else chosen


def _asked_form(prepared: Prepared, structured: StructuredOutput) -> tuple[OutputSpec | None, tuple[Message, ...]]:
    """Return the spec to ask for natively, or the message that asks for it; neither where the job chose a format.

    Langdock takes the spec itself; the other services that host assistants have no way of
    their own, or none that is documented.
    """
    spec = prepared.output
    if spec is None or prepared.parameters.response_format is not None or prepared.provider == "langdock":
        return None, ()
    if prepared.provider == "openai" and structured == "native":
        return spec, ()
    return None, (Message(role="system", content=instruction(spec)),)


def _hosted(
    record: JobRecord, prepared: Prepared, ask: Ask, told: tuple[Message, ...], *, thread_ref: str | None
) -> HostedCall:
    config, job = prepared.config, record.job
    # A conversation that the service keeps has seen the template and the history already.
    opening = prepared.messages if prepared.thread_ref is None else prepared.asked
    return HostedCall(
        assistant=config.provider_assistant,
        name=job.inline.name if job.inline else config.assistant.rsplit("/", 1)[1],
        instructions=prepared.instructions,
        description=config.description,
        variables=prepared.variables,
        new_messages=(*(ask.new_messages if ask.messages else opening), *told),
        output=prepared.output,
        thread_ref=thread_ref,
        max_steps=prepared.max_steps,
        metadata=job.metadata,
        do_not_record=job.do_not_record,
        keep_thread=(job.keep_thread and not job.do_not_record) or job.thread_id is not None,
        model=prepared.parameters.model,
    )
