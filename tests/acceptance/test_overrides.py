"""What a job may override, on the real worker: each reaches the provider or the record."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from schemas import InlineAssistant, InvokeJob
from schemas import names as redis_names
from tests.at_work import Scene, completion, said
from tests.loopback_provider import Reply, answers

FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
OTHER = {"type": "function", "name": "g", "description": "Do it.", "parameters": {"type": "object"}}


def sent(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool as the provider is told of it."""
    told = {name: tool.get(name, "") for name in ("name", "description", "parameters")}
    return {"type": "function", "function": told}


ASSISTANTS: dict[str, Any] = {
    "max_tokens": 100,
    "temperature": 0.5,
    "top_p": 0.9,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.2,
    "seed": 1,
    "stop": ["END"],
    "n": 1,
    "tools": [FUNCTION],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "user": "the assistant's",
    "reasoning_effort": "low",
    "response_format": {"type": "text"},
}
# Zero, false and empty are values too.
OVERRIDES: dict[str, tuple[Any, Any]] = {
    "max_tokens": (7, 7),
    "temperature": (0, 0),
    "top_p": (0, 0),
    "presence_penalty": (-2, -2),
    "frequency_penalty": (0, 0),
    "seed": (0, 0),
    "stop": ("one", ["one"]),
    "n": (2, 2),
    "tools": ([OTHER], [sent(OTHER)]),
    "tool_choice": ({"type": "function", "function": {"name": "f"}},) * 2,
    "parallel_tool_calls": (False, False),
    "user": ("end-user-7", "end-user-7"),
    "reasoning_effort": ("none", "none"),
    "response_format": ({"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},) * 2,
}


def sent_by_assistant() -> dict[str, Any]:
    return ASSISTANTS | {"tools": [sent(FUNCTION)]}


def test_what_an_assistant_sets_reaches_the_provider(scene: Scene) -> None:
    scene.assistant(**ASSISTANTS)
    scene.succeeds("go")
    (body,) = scene.asked
    assert body == {"model": scene.model, "messages": body["messages"], **sent_by_assistant()}


def test_what_nobody_sets_is_not_sent(scene: Scene) -> None:
    scene.assistant()
    scene.succeeds("go")
    assert set(scene.asked[0]) == {"model", "messages"}


def test_each_parameter_of_a_job_reaches_the_provider_in_the_place_of_the_assistants_and_changes_no_other(
    scene: Scene,
) -> None:
    scene.assistant(**ASSISTANTS)
    ids = {name: scene.enqueue(f"override {name}", **{name: value}) for name, (value, _) in OVERRIDES.items()}
    assert all(result.succeeded for result in scene.works.results(ids.values()))
    bodies = {body["messages"][-1]["content"].removeprefix("override "): body for body in scene.asked}
    for name, (_, value) in OVERRIDES.items():
        body = bodies[name]
        assert body == {"model": scene.model, "messages": body["messages"], **sent_by_assistant(), name: value}


def test_a_job_may_ask_for_another_model_which_is_recorded(scene: Scene) -> None:
    scene.assistant()
    result = scene.succeeds("go", model=f"{scene.model}-large")
    assert scene.asked[0]["model"] == f"{scene.model}-large"
    assert result.model == scene.works.row(result.job_id).model == f"{scene.model}-large"


def test_max_tokens_minus_one_sends_no_limit(scene: Scene) -> None:
    scene.assistant(max_tokens=100)
    scene.succeeds("go", max_tokens=-1)
    assert "max_tokens" not in scene.asked[0]


def test_an_empty_list_of_tools_removes_the_assistants(scene: Scene) -> None:
    scene.assistant(tools=[FUNCTION], tool_choice="auto", parallel_tool_calls=False)
    scene.succeeds("go", tools=[])
    assert set(scene.asked[0]) == {"model", "messages"}


def test_a_jobs_tools_are_run_in_the_place_of_the_assistants(scene: Scene) -> None:
    scene.assistant(tools=[FUNCTION])
    scene.replies(completion(calls=[("c1", "word_count", {"text": "a b"})]), answers("ok"))
    scene.succeeds("go", tools=[{"type": "python", "name": "word_count"}])
    assert [tool["function"]["name"] for tool in scene.asked[0]["tools"]] == ["word_count"]
    assert json.loads(scene.asked[1]["messages"][-1]["content"])["words"] == 2


def test_json_mode_is_sent_with_its_reminder_which_stays_out_of_the_thread(scene: Scene) -> None:
    scene.assistant()
    result = scene.succeeds("go", response_format={"type": "json_object"})
    assert scene.asked[0]["response_format"] == {"type": "json_object"}
    assert said(scene.asked[0]) == [("system", "Help."), ("user", "go"), ("system", "format: JSON")]
    assert [role for role, _ in scene.turns(result.thread_id)] == ["user", "assistant"]


def test_the_choices_of_n_are_all_in_the_result_and_the_first_is_the_output(scene: Scene) -> None:
    scene.assistant(n=3)

    def script(body: Any, n: int) -> Reply:
        texts = [f"choice {index}" for index in range(body["n"])]
        whole = json.loads(completion("", usage=(10, 15)).body)
        message = {"role": "assistant"}
        whole["choices"] = [
            {"index": index, "message": {**message, "content": text}, "finish_reason": "stop"}
            for index, text in enumerate(texts)
        ]
        return Reply(body=json.dumps(whole).encode())

    scene.plays(script)
    result = scene.succeeds("go")
    assert result.output == "choice 0"
    assert result.choices == ("choice 0", "choice 1", "choice 2")
    assert scene.works.row(result.job_id).choices == list(result.choices)
    assert scene.turns(result.thread_id) == [("user", "go"), ("assistant", "choice 0")]
    assert scene.succeeds("go", n=1).choices == ()


def test_a_jobs_template_replaces_the_stored_one_for_that_job_only(scene: Scene) -> None:
    scene.assistant(template=[{"role": "user", "content": "stored {{ x }}"}], variables={"x": "default"})
    scene.succeeds("go", template=[{"role": "system", "content": "mine {{ x }}"}], variables={"x": "given"})
    scene.succeeds("go")
    scene.succeeds("go", template=[])
    assert [said(body) for body in scene.asked] == [
        [("system", "Help."), ("system", "mine given"), ("user", "go")],
        [("system", "Help."), ("user", "stored default"), ("user", "go")],
        [("system", "Help."), ("user", "go")],
    ]


def test_a_jobs_output_replaces_the_assistants(scene: Scene) -> None:
    scene.assistant(output={"type": "object"})
    scene.replies(completion('{"result": "b"}'))
    assert scene.succeeds("go", output={"type": "enum", "enum": ["a", "b"]}).output == "b"


def test_metadata_and_variables_are_recorded_with_the_job_and_not_sent(scene: Scene) -> None:
    scene.assistant()
    metadata = {"source": "web", "n": 3, "share": 0.5, "paid": True}
    result = scene.succeeds("go", metadata=metadata, variables={"v": {"deep": [1]}}, custom_id="row 7")
    row = scene.works.row(result.job_id)
    assert (row.job_metadata, row.variables, row.custom_id) == (metadata, {"v": {"deep": [1]}}, "row 7")
    assert "metadata" not in scene.asked[0]
    assert result.custom_id == "row 7"


@pytest.mark.parametrize(
    ("fields", "said_of_it"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, or -1"),
        ({"max_tokens": -2}, "max_tokens must be at least 1, or -1"),
        ({"temperature": -0.1}, "greater than or equal to 0"),
        ({"temperature": 2.1}, "less than or equal to 2"),
        ({"top_p": 1.1}, "less than or equal to 1"),
        ({"top_p": -0.1}, "greater than or equal to 0"),
        ({"presence_penalty": 2.1}, "less than or equal to 2"),
        ({"frequency_penalty": -2.1}, "greater than or equal to -2"),
        ({"n": 0}, "greater than or equal to 1"),
        ({"stop": []}, "at least 1 item"),
        ({"seed": "x"}, "valid integer"),
        ({"max_steps": 0}, "greater than or equal to 1"),
        ({"max_steps": 21}, "less than or equal to 20"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [FUNCTION, FUNCTION]}, "two tools are named 'f'"),
        ({"tools": [{**FUNCTION, "name": "no spaces"}]}, "pattern"),
        ({"metadata": {"k" * 65: 1}}, "must have 1 to 64 characters"),
        ({"metadata": {"k": [1]}}, "metadata"),
        ({"user": "u" * 513}, "at most 512"),
        ({"version": 0}, "greater than or equal to 1"),
        ({"environment": "no/slash"}, "pattern"),
        ({"thread_id": "no spaces"}, "pattern"),
        ({"output": {"type": "enum"}}, "needs `enum`"),
        ({"output": {"type": "object", "schema": {"type": "nonsense"}}}, "schema"),
        ({"output": {"type": "object", "schema": {"$ref": "https://example.com/s.json"}}}, "schema"),
        ({"template": [{"role": "user", "content": "{{#if x}}"}]}, "template"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
        ({"assistant": "no-address"}, "pattern"),
        ({"reasoning": "high"}, "Extra inputs"),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)
def test_what_is_out_of_range_is_refused_before_anything_is_enqueued(
    scene: Scene, fields: dict[str, Any], said_of_it: str
) -> None:
    before = {key for key in scene.works.redis.scan_iter() if key.startswith(b"aq:job:")}
    with pytest.raises(ValidationError, match=said_of_it):
        scene.enqueue("go", **fields)
    assert {key for key in scene.works.redis.scan_iter() if key.startswith(b"aq:job:")} == before


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "n" * 65},
        {"name": ""},
        {"instructions": "i" * 16_385},
        {"description": "d" * 257},
        {"temperature": 1.1},
        {"temperature": -0.1},
    ],
    ids=lambda fields: "=".join(str(part)[:12] for part in next(iter(fields.items()))),
)
def test_an_inline_assistant_out_of_its_bounds_is_refused(fields: dict[str, Any]) -> None:
    within = {
        "workspace": "w",
        "name": "n" * 64,
        "instructions": "i" * 16_384,
        "description": "d" * 256,
        "temperature": 1,
    }
    InvokeJob.model_validate({"inline": within})
    with pytest.raises(ValidationError):
        InlineAssistant.model_validate(within | fields)


@pytest.fixture
def canary(scene: Scene) -> str:
    """A text that stands nowhere else."""
    return f"canary-of-{scene.model}-7f3a91"


@pytest.mark.parametrize("ending", ["succeeds", "fails", "waits", "is invalid", "calls tools"])
def test_of_a_job_that_is_not_to_be_recorded_the_row_stays_and_its_content_is_nowhere(
    scene: Scene, canary: str, ending: str
) -> None:
    works = scene.works
    # Providers quote in an error what they were asked.
    error = json.dumps({"error": {"message": f"what is {canary}?"}}).encode()
    scene.assistant(
        template=[{"role": "user", "content": "{{ secret }}"}],
        tools=[{"type": "python", "name": "word_count"}, FUNCTION],
        max_repairs=0,
    )
    good = completion(f"said {canary}", usage=(20, 6))
    endings = {
        "succeeds": [good],
        "waits": [Reply(status=500, body=error), good],
        "is invalid": [completion(f"not JSON, {canary}", usage=(20, 6))],
        "calls tools": [completion(f"{canary}?", calls=[("c2", "f", {"a": canary})], usage=(20, 6))],
        "fails": [Reply(status=400, body=error)],
    }
    first = completion(f"hm, {canary}", calls=[("c1", "word_count", {"text": canary})], usage=(10, 5))
    scene.replies(first, *endings[ending])
    result = scene.run(
        canary,
        variables={"secret": canary},
        metadata={"of": canary},
        doNotRecord=True,
        **({"output": {"type": "object"}} if ending == "is invalid" else {}),
    )
    assert canary in json.dumps(scene.asked)
    # Its caller gets what it came to.
    expected = {"fails": "failed", "is invalid": "invalid_output"}.get(ending, "succeeded")
    assert result.status == expected
    assert canary in result.model_dump_json()

    row = works.row(result.job_id)
    assert (row.status, row.version, row.workspace) == (expected, 1, scene.workspace)
    assert (row.prompt_tokens, row.completion_tokens) == ((10, 5) if ending == "fails" else (30, 11))
    assert row.thread_id is None
    assert canary not in works.everything_in_sql()
    assert canary not in works.log.read_text("utf-8")
    # Redis keeps the result as long as its caller may need to fetch it, and no more.
    kept = {key for key in works.redis.scan_iter() if _holds(works.redis, key, canary)}
    key = redis_names.result(result.job_id).encode()
    assert kept <= {key}
    assert 0 < works.redis.ttl(key) <= redis_names.UNRECORDED_RESULT_TTL_S


def test_a_job_that_is_not_to_be_recorded_keeps_its_messages_in_the_thread_that_it_names(
    scene: Scene, canary: str
) -> None:
    scene.assistant()
    scene.plays(lambda *_: answers("noted"))
    result = scene.succeeds(canary, thread_id="mine", do_not_record=True)
    row = scene.works.row(result.job_id)
    assert (row.output, row.thread_id) == (None, "mine")
    assert scene.turns("mine") == [("user", canary), ("assistant", "noted")]


def _holds(redis: Any, key: bytes, text: str) -> bool:
    """Return whether the value of a key, of whatever type, has the text in it; one that is gone by now has not."""
    dumped = {
        b"none": lambda: None,
        b"string": lambda: redis.get(key),
        b"hash": lambda: redis.hgetall(key),
        b"list": lambda: redis.lrange(key, 0, -1),
        b"set": lambda: redis.smembers(key),
        b"zset": lambda: redis.zrange(key, 0, -1),
    }[redis.type(key)]
    return text in repr(dumped())
