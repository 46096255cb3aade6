"""Jobs, assistants and the record of a job that travels."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas import AssistantConfig, InvokeJob, JobRecord, Message, OutputSpec, Rejection, names
from schemas.outcome import Code
from tests.given import ADDRESS, a_config, a_job

GOOD_IDS = ["a", "7", "job_1", "a.b-c_d@e:f", "x" * 200]
BAD_IDS = ["", " ", "a b", "a\n", "-a", ".a", "a/b", "ä", "a\x00", "x" * 201, "{{a}}"]


class TestJobs:
    @pytest.mark.parametrize("field", ["id", "thread_id"])
    @pytest.mark.parametrize("value", GOOD_IDS)
    def test_an_id_that_fits_keys_and_urls_is_taken(self, field: str, value: str) -> None:
        assert getattr(a_job(**{field: value}), field) == value

    @pytest.mark.parametrize("field", ["id", "thread_id"])
    @pytest.mark.parametrize("value", BAD_IDS, ids=repr)
    def test_any_other_id_is_refused(self, field: str, value: str) -> None:
        with pytest.raises(ValidationError):
            a_job(**{field: value})

    @pytest.mark.parametrize("address", ["w/p/a", "W1/p.2/a-b_c"])
    def test_an_address_has_three_parts(self, address: str) -> None:
        assert a_job(assistant=address).assistant == address

    @pytest.mark.parametrize(
        "address", ["a", "w/p", "w/p/a/b", "w//a", "/p/a", "w/p/", "w/p/a ", "w/p/a\n", "w:x/p/a", f"{'w' * 65}/p/a"]
    )
    def test_any_other_address_is_refused(self, address: str) -> None:
        with pytest.raises(ValidationError):
            a_job(assistant=address)

    @pytest.mark.parametrize(
        "fields",
        [
            {"version": 0},
            {"environment": ""},
            {"environment": "a/b"},
            {"custom_id": "x" * 513},
            {"metadata": {"": 1}},
            {"metadata": {"k" * 65: 1}},
            {"metadata": {"k": None}},
            {"metadata": {"k": [1]}},
            {"messages": [{"role": "robot", "content": "x"}]},
            {"messages": [{"role": "user", "content": None}]},
            {"messages": [{"role": "user", "content": "x", "nmae": "y"}]},
            {"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]},
            {"messages": [{"role": "tool", "content": "x"}]},
            {"inline": {"workspace": "w", "name": "a", "instructions": "Help."}},
            {"assistant": None},
            {"max_tokens": 0},
            {"max_steps": 21},
            {"output": {"type": "enum"}},
            {"variabels": {}},
        ],
        ids=str,
    )
    def test_a_wrong_field_is_refused(self, fields: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            InvokeJob.model_validate({"assistant": ADDRESS, **fields})

    def test_a_template_must_parse_unless_the_job_is_lenient(self) -> None:
        broken = [{"role": "user", "content": "fine"}, {"role": "user", "content": "{{#if x}}"}]
        for strict in (None, True):
            with pytest.raises(ValidationError, match=r"template\[1\].content: template does not parse"):
                a_job(template=broken, strict_variables=strict)
        job = a_job(template=broken, strict_variables=False)
        record = JobRecord(id="j", job=job)
        assert JobRecord.model_validate_json(record.model_dump_json(exclude_defaults=True, by_alias=True)) == record

    def test_jobs_of_one_assistant_and_version_share_a_route(self) -> None:
        routes = [
            a_job().route,
            a_job(environment="staging").route,
            a_job(version=3).route,
            a_job(version=3, environment="staging").route,
            a_job(assistant="w/p/a").route,
        ]
        assert routes == [f"{ADDRESS}@production", f"{ADDRESS}@staging", *[f"{ADDRESS}@3"] * 2, "w/p/a@production"]

    def test_its_workspace_is_the_first_part_of_the_address(self) -> None:
        assert a_job(assistant="w/p/a").workspace == "w"


scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    scalars | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


@given(
    variables=st.dictionaries(text, values, max_size=4),
    contents=st.lists(text, max_size=3),
    metadata=st.dictionaries(
        text.filter(bool), text | st.booleans() | st.integers() | st.floats(-1e9, 1e9), max_size=3
    ),
    custom_id=st.none() | text,
)
def test_what_travels_arrives_as_it_was_sent(
    variables: dict[str, Any], contents: list[str], metadata: dict[str, Any], custom_id: str | None
) -> None:
    messages = tuple(Message(role="user", content=content) for content in contents)
    job = a_job("j", variables=variables, messages=messages, metadata=metadata, custom_id=custom_id)
    record = JobRecord(id="j", job=job, batch_id="b", row=3)
    arrived = JobRecord.model_validate_json(record.model_dump_json(exclude_defaults=True, by_alias=True))
    assert arrived == record
    assert {name: type(value) for name, value in arrived.job.metadata.items()} == {
        name: type(value) for name, value in metadata.items()
    }


def test_a_record_with_a_schema_and_a_rejection_arrives_as_it_was_sent() -> None:
    output = OutputSpec(type="object", json_schema={"type": "object"})
    rejection = Rejection(code=Code.BAD_ROW, error="2 columns")
    record = JobRecord(id="j", job=a_job("j", output=output), rejection=rejection)
    assert JobRecord.model_validate_json(record.model_dump_json(exclude_defaults=True, by_alias=True)) == record


def test_a_rejection_has_a_code_that_results_know() -> None:
    with pytest.raises(ValidationError):
        Rejection.model_validate({"code": "because", "error": "no"})


class TestAssistants:
    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"template": (), "instructions": ""}, "needs `instructions`, a `template`, or both"),
            ({"template": [{"role": "user", "content": "{{"}]}, "does not parse"),
            ({"instructions": "{{#if a}}"}, "does not parse"),
            ({"template": [{"role": "tool", "content": "x"}]}, "'system', 'user' or 'assistant'"),
            ({"temperature": 2.1}, "less than or equal to 2"),
            ({"temperature": -0.1}, "greater than or equal to 0"),
            ({"top_p": 1.1}, "less than or equal to 1"),
            ({"max_tokens": 0}, "greater than or equal to 1"),
            ({"stop": []}, "at least 1 item"),
            ({"model": ""}, "at least 1 character"),
            ({"assistant": "reviews"}, "should match pattern"),
            ({"modell": "m1"}, "Extra inputs"),
        ],
        ids=str,
    )
    def test_a_wrong_one_is_refused(self, fields: dict[str, Any], words: str) -> None:
        with pytest.raises(ValidationError, match=words):
            a_config(**fields)

    def test_one_with_instructions_alone_will_do(self) -> None:
        assert AssistantConfig(assistant=ADDRESS, instructions="Label it.").template == ()

    def test_sampling_may_be_zero(self) -> None:
        config = a_config(temperature=0, top_p=0, seed=0)
        assert (config.temperature, config.top_p, config.seed) == (0, 0, 0)


def test_no_two_kinds_of_key_can_meet_whatever_ids_are_chosen() -> None:
    ids = ["a", "rows", "a:rows", "lines", "in", "lines:in", "x:y:z"]
    keys = [names.ROUTES, names.RING, names.PARKED, names.PAUSED, names.DRAINING, names.WEIGHTS]
    keys += [names.LEASES, names.SNOOZED, names.WORKERS, names.BATCHES, names.ENDING, names.FAULTS]
    for make in (names.job, names.journal, names.result, names.batch, names.batch_rows, names.batch_lines):
        keys += [make(each) for each in ids]
    for version in ("a", "rows", "1"):
        keys += [names.line(f"{mark}|{batch}|{ADDRESS}@{version}") for mark in "IB" for batch in ("", "a")]
    keys += [names.thread(workspace, each) for workspace in ("w", "rows") for each in ids]
    keys += [key for each in ids for key in (names.limit(f"w/p/{each}"), names.entering(f"w/p/{each}"))]
    keys += [names.lane_lines(f"w/p/{each}", mark) for each in ids for mark in "IB"]
    keys += [names.workspace_lanes("w", "I"), names.workspace_lanes("w", "B")]
    assert len(keys) == len(set(keys))
