"""The official `openai` package, unmodified, against the gateway: chat on /v1 and on an agent's path."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionToolParam
from pydantic import BaseModel

from tests.at_work import Scene, completion, scene, works
from tests.gateway.conftest import gateway
from tests.loopback_provider import Reply, answers, status
from tests.served_gateway import ServedGateway

__all__ = ["gateway", "scene", "works"]

Where = Literal["v1", "agent"]
Connect = Callable[..., OpenAI]

BOTH = pytest.mark.parametrize("where", ["v1", "agent"])
HELLO: Any = [{"role": "user", "content": "Hi"}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Person(BaseModel):
    name: str
    age: int


def base_url(gateway: ServedGateway, scene: Scene, where: Where) -> str:
    if where == "v1":
        return f"{gateway.url}/v1"
    _, project, name = scene.address.split("/")
    return f"{gateway.url}/api/v1/compatibility/openai/v1/assistants/{project}:{name}"


@pytest.fixture
def connect(gateway: ServedGateway, scene: Scene) -> Iterator[Connect]:
    """Make clients of the scene's workspace, which has one assistant."""
    scene.assistant()
    clients: list[OpenAI] = []

    def client(where: Where = "v1", **options: Any) -> OpenAI:
        values = {"api_key": gateway.key(scene.workspace), "max_retries": 0, **options}
        transport = openai.DefaultHttpxClient(trust_env=False)
        clients.append(OpenAI(base_url=base_url(gateway, scene, where), http_client=transport, **values))
        return clients[-1]

    yield client
    for each in clients:
        each.close()


@BOTH
def test_a_chat_is_completed(connect: Connect, scene: Scene, where: Where) -> None:
    scene.replies(completion("Hello.", usage=(10, 5)))
    done = connect(where).chat.completions.create(model=scene.model, messages=HELLO, temperature=0.2, seed=1)
    assert done.choices[0].message.content == "Hello."
    assert done.choices[0].finish_reason == "stop"
    assert done.usage is not None
    assert done.usage.total_tokens == 15
    assert scene.works.row(str(done._request_id)).status == "succeeded"


@BOTH
def test_a_chat_is_streamed(connect: Connect, scene: Scene, where: Where) -> None:
    scene.replies(completion("Hello.", usage=(10, 5)))
    stream = connect(where).chat.completions.create(
        model=scene.model, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello."
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 5


def test_a_chat_is_completed_and_streamed_by_the_asynchronous_client(
    gateway: ServedGateway, connect: Connect, scene: Scene
) -> None:
    scene.replies(answers("one"), answers("two"))

    async def both() -> tuple[str | None, str]:
        transport = openai.DefaultAsyncHttpxClient(trust_env=False)
        values: Any = {"api_key": gateway.key(scene.workspace), "http_client": transport}
        async with AsyncOpenAI(base_url=base_url(gateway, scene, "v1"), **values) as client:
            done = await client.chat.completions.create(model=scene.model, messages=HELLO)
            stream = await client.chat.completions.create(model=scene.model, messages=HELLO, stream=True)
            streamed = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return done.choices[0].message.content, "".join(streamed)

    assert asyncio.run(both()) == ("one", "two")


@BOTH
@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_is_called_and_its_answer_goes_back(
    connect: Connect, scene: Scene, where: Where, streamed: bool
) -> None:
    scene.replies(completion(calls=[("c1", "weather", {"city": "Oslo"})]), answers("Sunny."))
    client = connect(where)
    asked: Any = {"model": scene.model, "tools": [WEATHER]}
    if streamed:
        with client.chat.completions.stream(messages=HELLO, **asked) as stream:
            message = stream.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.create(messages=HELLO, **asked).choices[0].message
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "sun"}
    said: Any = [*HELLO, message, result]
    done = client.chat.completions.create(messages=said, **asked)
    assert done.choices[0].message.content == "Sunny."
    assert [each["role"] for each in scene.asked[1]["messages"]][-3:] == ["user", "assistant", "tool"]


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_is_parsed_into_the_callers_own_class_and_mended_before(
    connect: Connect, scene: Scene, streamed: bool
) -> None:
    scene.replies(answers('{"name": "Ann"}'), answers('{"name": "Ann", "age": 7}'))
    client = connect()
    if streamed:
        asked: Any = {"model": scene.model, "messages": HELLO, "response_format": Person}
        with client.chat.completions.stream(**asked) as stream:
            message: Any = stream.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.parse(model=scene.model, messages=HELLO, response_format=Person)
        message = message.choices[0].message
    assert message.parsed == Person(name="Ann", age=7)


def test_a_session_goes_on_with_the_fields_of_the_agent_dialect(connect: Connect, scene: Scene) -> None:
    scene.replies(answers("one"), answers("two"))
    create: Any = connect("agent").chat.completions.create
    first = create(model="", messages=HELLO, extra_body={"create_session": True})
    again = create(model="", messages=HELLO, extra_body={"store_in_session": first.session_id})
    assert again.session_id == first.session_id
    assert [text for _, text in scene.turns(first.session_id)] == ["Hi", "one", "Hi", "two"]


def test_models_are_listed_and_retrieved(connect: Connect, scene: Scene) -> None:
    client = connect()
    assert [model.id for model in client.models.list()] == [scene.model, scene.address]
    assert client.models.retrieve(scene.address).owned_by == scene.workspace
    assert [model.id for model in connect("agent").models.list()] == [scene.model]


def test_an_assistants_address_is_a_model(connect: Connect, scene: Scene) -> None:
    scene.replies(answers("Hello."))
    connect().chat.completions.create(model=scene.address, messages=HELLO)
    assert scene.asked[0]["messages"][0] == {"role": "system", "content": "Help."}


@BOTH
def test_errors_are_the_packages_own(connect: Connect, scene: Scene, where: Where) -> None:
    with pytest.raises(openai.AuthenticationError):
        connect(where, api_key="no").chat.completions.create(model=scene.model, messages=HELLO)
    create: Any = connect(where).chat.completions.create
    wrong = openai.BadRequestError if where == "v1" else openai.UnprocessableEntityError
    with pytest.raises(wrong):
        create(model=scene.model, messages=[])
    scene.replies(status(400))
    with pytest.raises(openai.BadRequestError) as refused:
        create(model=scene.model, messages=HELLO)
    assert refused.value.code == "request_refused"
    assert str(refused.value.request_id).startswith("job_")
    scene.plays(lambda _body, _n: Reply(body=b"{}"))
    with pytest.raises(openai.InternalServerError):
        create(model=scene.model, messages=HELLO, stream=True)


def test_a_model_or_agent_that_is_not_there_is_not_found(connect: Connect, scene: Scene) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        connect().chat.completions.create(model=f"{scene.workspace}/tests/none", messages=HELLO)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    client = connect("agent")
    with pytest.raises(openai.NotFoundError):
        client.with_options(base_url=f"{client.base_url}x").chat.completions.create(model="", messages=HELLO)
