"""Every operation of the gateway, and how to ask for each so that it names what a workspace has.

Whoever adds a route extends the tables: PATH_PARAMETERS where a path has a new parameter, SAMPLES where a request
has a body or names something in its query. test_isolation.py fails until that is done.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from tests.gateway.tenant import Names

Make = Callable[[Names], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One way to ask for an operation.

    `names` says whether it names what must be there, in its path, query or body; None: if its path has parameters.
    `uses_assistant` whether the assistant that it names must be shared with the key; None: if its path has it.
    `owner` are the statuses beside success that the workspace itself may get, such as 409; `refused` those beside
    403 and 404 that a stranger may, if what exists nowhere has the same.
    """

    json: Make | None = None
    files: Make | None = None
    data: Make | None = None
    query: Make | None = None
    path: Mapping[str, Make] = dataclasses.field(default_factory=dict)
    names: bool | None = None
    uses_assistant: bool | None = None
    owner: frozenset[int] = frozenset()
    refused: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """A method of a path, such as `GET /v1/jobs/{job_id}`."""

    method: str
    path: str

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def parameters(self) -> list[str]:
        return re.findall(r"{(\w+)}", self.path)


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """An operation with one of its samples."""

    operation: Operation
    sample: Sample

    @property
    def names_something(self) -> bool:
        return bool(self.operation.parameters) if self.sample.names is None else self.sample.names

    @property
    def uses_assistant(self) -> bool:
        if self.sample.uses_assistant is not None:
            return self.sample.uses_assistant
        return not ASSISTANT_PARAMETERS.isdisjoint(self.operation.parameters)

    def request(self, names: Names) -> dict[str, Any]:
        """Return what httpx is to send."""
        made = {"method": self.operation.method, "url": self._url(names)}
        for part, make in (
            ("json", self.sample.json),
            ("files", self.sample.files),
            ("data", self.sample.data),
            ("params", self.sample.query),
        ):
            if make is not None:
                made[part] = make(names)
        return made

    def _url(self, names: Names) -> str:
        values = {name: {**PATH_PARAMETERS, **self.sample.path}[name](names) for name in self.operation.parameters}
        return self.operation.path.format(**values)


PATH_PARAMETERS: dict[str, Make] = {
    "workspace": lambda n: n.workspace,
    "project": lambda n: n.project,
    "assistant": lambda n: n.assistant,
    "environment": lambda n: n.environment,
    "address": lambda n: n.address,
    "slug": lambda n: n.assistant,
    "model": lambda n: n.address,
    "agent_id": lambda n: n.address,
    "assistant_id": lambda n: n.address,
    "version": lambda _: "1",
    "job_id": lambda n: n.job_id,
    "batch_id": lambda n: n.batch_id,
    "thread_id": lambda n: n.thread_id,
    "message_id": lambda n: n.message_id,
    "file_id": lambda n: n.file_id,
    "attachment_id": lambda n: n.attachment_id,
    "delivery_id": lambda n: n.delivery_id,
}
# A path with one of these runs or shows the assistant.
ASSISTANT_PARAMETERS = {"assistant", "slug", "model", "address", "agent_id", "assistant_id"}

_MAYBE_400 = frozenset({400})
_MAYBE_404 = frozenset({404})
_AGENT = "/api/v1/compatibility/openai/v1"
_HELLO = [{"role": "user", "content": "Hi"}]

# `METHOD path` -> how to ask for it, each way in turn. Where nothing stands here a GET is asked for without more, and
# so is a DELETE with parameters.
SAMPLES: dict[str, tuple[Sample, ...]] = {
    # OpenAI's
    "POST /v1/chat/completions": (
        Sample(json=lambda n: {"model": n.model, "messages": _HELLO}, names=False, uses_assistant=True),
        Sample(json=lambda n: {"model": n.address, "messages": _HELLO}, names=True, uses_assistant=True),
    ),
    "POST /v1/files": (
        Sample(files=lambda _: {"file": ("a.jsonl", b"{}")}, data=lambda _: {"purpose": "batch"}, names=False),
    ),
    "GET /v1/files": (Sample(), Sample(query=lambda n: {"after": n.file_id}, names=True, refused=_MAYBE_400)),
    "POST /v1/batches": (
        Sample(
            json=lambda n: {
                "input_file_id": n.file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h",
            },
            names=True,
        ),
    ),
    "GET /v1/batches": (Sample(), Sample(query=lambda n: {"after": n.batch_id}, names=True, refused=_MAYBE_400)),
    # It has ended.
    "POST /v1/batches/{batch_id}/cancel": (Sample(owner=frozenset({409})),),
    # The agents'
    f"POST {_AGENT}/assistants/{{agent_id}}/chat/completions": (Sample(json=lambda _: {"messages": _HELLO}),),
    f"POST {_AGENT}/agents/{{agent_id}}/chat/completions": (Sample(json=lambda _: {"messages": _HELLO}),),
    # Langdock's
    "POST /assistant/v1/chat/completions": (
        Sample(json=lambda n: {"assistantId": n.address, "messages": _HELLO}, names=True, uses_assistant=True),
        Sample(
            json=lambda n: {
                "assistant": {"name": "a", "instructions": "b", "model": n.model},
                "messages": [{**_HELLO[0], "attachmentIds": [n.attachment_id]}],
            },
            names=True,
            refused=_MAYBE_400,
        ),
    ),
    "POST /assistant/v1/create": (Sample(json=lambda _: {"name": "a", "instruction": "b"}, names=False),),
    "PATCH /assistant/v1/update": (
        Sample(json=lambda n: {"assistantId": n.address, "name": "a"}, names=True, uses_assistant=True),
    ),
    "GET /assistant/v1/get": (Sample(query=lambda n: {"assistantId": n.address}, names=True, uses_assistant=True),),
    "POST /attachment/v1/upload": (Sample(files=lambda _: {"file": ("a.txt", b"text")}, names=False),),
    "DELETE /attachment/v1/delete": (Sample(json=lambda n: {"attachmentId": n.attachment_id}, names=True),),
    # Langtail's
    "POST /{workspace}/{project}/{assistant}/{environment}": (Sample(json=lambda _: {"messages": _HELLO}),),
    # The key that is asked with is of one project, if it is of any.
    "POST /project-prompt/{slug}/{environment}": (Sample(json=lambda _: {"messages": _HELLO}, owner=_MAYBE_404),),
    "GET /project-prompt/{slug}/{environment}": (Sample(owner=_MAYBE_404),),
    "POST /v2/threads": (Sample(json=lambda _: {}, names=False),),
    "GET /v2/threads": (Sample(), Sample(query=lambda n: {"after": n.thread_id}, names=True, refused=_MAYBE_400)),
    "POST /v2/threads/{thread_id}": (Sample(json=lambda _: {"metadata": {"a": "b"}}),),
    # Our own DELETE has deleted it before.
    "DELETE /v2/threads/{thread_id}": (Sample(owner=_MAYBE_404),),
    "POST /v2/threads/{thread_id}/messages": (Sample(json=lambda _: {"role": "user", "content": "Hi"}),),
    "POST /v2/threads/{thread_id}/messages/{message_id}": (Sample(json=lambda _: {"metadata": {"a": "b"}}),),
    # Our own
    "POST /v1/jobs": (
        Sample(json=lambda n: {"assistant": n.address, "messages": _HELLO}, names=True, uses_assistant=True),
    ),
    "GET /v1/jobs": (
        Sample(),
        Sample(query=lambda n: {"batch": n.batch_id}, names=False),
        Sample(query=lambda n: {"assistant": n.address}, names=True),
    ),
    "POST /v1/jobs/{job_id}/cancel": (Sample(),),
    "POST /v1/jobs/{job_id}/retry": (Sample(uses_assistant=True),),
    "POST /v1/job-batches": (
        Sample(
            json=lambda n: {"assistant": n.address, "jobs": [{"messages": _HELLO}]}, names=True, uses_assistant=True
        ),
    ),
    "POST /v1/job-batches/{batch_id}/cancel": (Sample(),),
    # All of its rows succeeded.
    "POST /v1/job-batches/{batch_id}/retry": (Sample(owner=frozenset({409})),),
    "PUT /v1/assistants/{project}/{assistant}": (
        # One that nobody has: else the stranger would have made what it asks for next.
        Sample(
            json=lambda _: {"instructions": "a"},
            path={"project": lambda _: "own", "assistant": lambda _: "new"},
            names=False,
            uses_assistant=False,
        ),
    ),
    "PUT /v1/assistants/{project}/{assistant}/environments/{environment}": (Sample(json=lambda _: {"version": 1}),),
    "POST /v1/webhooks/deliveries/{delivery_id}/replay": (Sample(),),
    "POST /v1/webhooks/endpoints/enable": (Sample(json=lambda n: {"url": n.webhook}, names=True),),
    "POST /v1/webhooks/secret/rotate": (Sample(names=False),),
    "PUT /v1/webhooks/subscriptions": (Sample(json=lambda _: {"url": "http://127.0.0.1:9/mine"}, names=False),),
    "DELETE /v1/webhooks/subscriptions": (Sample(query=lambda n: {"url": n.webhook}, names=True),),
}  # fmt: skip


def operations(app: FastAPI) -> list[Operation]:
    """Return all that the application answers to, what is not in its OpenAPI document included."""
    return sorted(_operations(app), key=lambda each: (each.path, each.method))


def _operations(app: FastAPI) -> Iterator[Operation]:
    for route in iter_route_contexts(app.routes):
        assert route.path_format and route.methods, f"nobody knows how to ask for {route.original_route}"  # noqa: PT018 - both say that it is no plain route
        for method in route.methods - {"HEAD", "OPTIONS"}:
            yield Operation(method, route.path_format)


def asked(app: FastAPI) -> list[Asked]:
    """Return each way to ask for each operation; AssertionError for what the tables say nothing of."""
    found, missing = [], []
    for operation in operations(app):
        samples = SAMPLES.get(operation.name)
        if samples is None:
            plain = operation.method == "GET" or (operation.method == "DELETE" and operation.parameters)
            if not plain:
                missing.append(f"{operation.name}: SAMPLES has no entry")
            samples = (Sample(),)
        known = set(PATH_PARAMETERS) | {name for sample in samples for name in sample.path}
        missing += [
            f"{operation.name}: PATH_PARAMETERS has no {name}" for name in operation.parameters if name not in known
        ]
        found += [Asked(operation, sample) for sample in samples]
    assert not missing, "how to ask for it stands not in tests/gateway/operations.py:\n" + "\n".join(missing)
    return found
