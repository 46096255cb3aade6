"""What is told of a request that breaks its schema, however much of it does."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from producer.gateway.dialects.agent.completions import AgentCompletionRequest as AgentRequest
from producer.gateway.dialects.langdock.request import CompletionRequest as LangdockRequest
from producer.gateway.dialects.langtail.request import InvokeRequest as LangtailRequest
from producer.gateway.dialects.openai.chat import ChatCompletionRequest as OpenAIRequest
from producer.gateway.faults import faults_of


def error_of(*places: tuple[str | int, ...], body: Any = None) -> RequestValidationError:
    told = [{"loc": ("body", *place), "msg": "bad", "type": "value_error"} for place in places]
    return RequestValidationError(told, body=body)


def test_of_many_faults_a_hundred_are_told_and_not_all_are_read() -> None:
    read = 0

    class Told(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            nonlocal read
            read += key == "loc"
            return super().__getitem__(key)

    body = [0] * 20_000
    errors = [Told(loc=("body", at), msg="bad", type="value_error") for at in range(len(body))]
    faults = faults_of(RequestValidationError(errors, body=body))
    assert len(faults) == 100
    assert faults[0].where == ("body", 0)
    assert read <= 1_000


def test_what_is_told_of_a_field_as_a_whole_gives_way_to_what_is_told_of_its_parts() -> None:
    body = {"content": [{"text": 1}], "other": 2}
    faults = faults_of(error_of(("content",), ("content", 0, "text"), ("other",), body=body))
    assert [fault.place for fault in faults] == ["content[0].text", "other"]


@pytest.mark.parametrize("request_model", [AgentRequest, LangdockRequest, LangtailRequest, OpenAIRequest])
@pytest.mark.parametrize("message", [1, {"role": "user", "content": [1] * 5_000}])
def test_a_dialect_stops_at_the_first_bad_item_of_a_list(request_model: type[BaseModel], message: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        request_model.model_validate({"model": "m", "messages": [message] * 5_000})
    assert caught.value.error_count() < 10
