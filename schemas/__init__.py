"""What travels between the parts of assistq: jobs, results, tables, names and settings.

A leaf package: it performs no I/O, and imports neither `producer` nor `worker`.
"""

from schemas.assistant import AssistantConfig, InlineAssistant, TemplateMessage
from schemas.chat import Message, Usage
from schemas.errors import AssistqError, InputError, ProducerError, ResultTimeout
from schemas.job import InvokeJob, JobRecord, Rejection
from schemas.outcome import Status
from schemas.output import OutputSpec
from schemas.result import JobResult
from schemas.settings import Settings

__all__ = [
    "AssistantConfig",
    "AssistqError",
    "InlineAssistant",
    "InputError",
    "InvokeJob",
    "JobRecord",
    "JobResult",
    "Message",
    "OutputSpec",
    "ProducerError",
    "Rejection",
    "ResultTimeout",
    "Settings",
    "Status",
    "TemplateMessage",
    "Usage",
]
