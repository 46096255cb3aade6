"""The local count of tokens is near a real tokenizer's, and more text is never fewer tokens."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.chat import ImagePart, ImageUrl, Message, TextPart, ToolCall
from tests.given import user
from worker.limits.estimate import (
    TOKENS_PER_IMAGE,
    TOKENS_PER_MESSAGE,
    TOKENS_PER_REQUEST,
    message_tokens,
    prompt_tokens,
    text_tokens,
)
from worker.providers.base import ChatRequest
from worker.tools.base import ToolDefinition

COUNTED: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "token_counts.json").read_text("utf-8")
)
# How far one text may be from o200k's count in the mean, and at most.
BOUNDS = {
    "english": (0.04, 0.10),
    "german": (0.08, 0.15),
    "french, spanish, polish": (0.14, 0.30),
    "russian": (0.10, 0.30),
    "chinese": (0.05, 0.10),
    "japanese, korean": (0.10, 0.20),
    "arabic, hebrew, greek": (0.16, 0.35),
    "hindi, thai": (0.14, 0.35),
    "code": (0.07, 0.20),
    "json": (0.06, 0.15),
    "numbers, csv": (0.05, 0.12),
    "ids, urls": (0.10, 0.25),
    "markdown": (0.09, 0.20),
    "emoji, capitals, rules": (0.11, 0.30),
}


@pytest.mark.parametrize("kind", COUNTED)
def test_it_is_near_what_a_real_tokenizer_counts(kind: str) -> None:
    mean, most = BOUNDS[kind]
    off = [abs(text_tokens(text["text"]) / text["o200k"] - 1) for text in COUNTED[kind]]
    assert statistics.fmean(off) < mean
    assert max(off) < most


@pytest.mark.parametrize(
    ("text", "tokens_min"),
    [
        ("0" * 999, 250),
        ("x" * 1000, 60),
        ("Z" * 1000, 100),
        ("=" * 1000, 15),
        ("\n" * 1000, 10),
        ("\0" * 1000, 10),
        ("😀" * 100, 100),
        ("字" * 100, 70),
        ("\ud800", 1),
        (" ", 0),
        ("", 0),
    ],
    ids=["digits", "letters", "capitals", "rule", "lines", "NUL", "emoji", "Chinese", "surrogate", "blank", "empty"],
)
def test_no_text_of_one_kind_counts_as_nothing(text: str, tokens_min: int) -> None:
    assert tokens_min <= text_tokens(text) <= 2 * len(text.encode(errors="replace"))


@given(st.text(), st.text())
def test_more_text_is_never_fewer_tokens(text: str, more: str) -> None:
    assert text_tokens(text + more) >= text_tokens(text)


def test_each_message_and_the_request_have_a_frame() -> None:
    request = ChatRequest(model="m", messages=(user("Superb."), user("Superb.")))
    assert prompt_tokens(request) == TOKENS_PER_REQUEST + 2 * (TOKENS_PER_MESSAGE + text_tokens("Superb."))


def test_parts_tool_calls_and_images_of_a_message_count() -> None:
    call = ToolCall(id="1", name="add", arguments='{"a": 1}')
    calling = Message(role="assistant", content="Wait.", tool_calls=(call,))
    assert message_tokens(calling) > message_tokens(Message(role="assistant", content="Wait.")) + TOKENS_PER_MESSAGE
    image = ImagePart(image_url=ImageUrl(url="https://example.com/a.png"))
    seen = Message(role="user", content=(TextPart(text="What is it?"), image))
    assert message_tokens(seen) == TOKENS_PER_MESSAGE + text_tokens("What is it?") + TOKENS_PER_IMAGE


@pytest.mark.parametrize(
    "attached",
    [
        {"response_schema": {"type": "object", "properties": {"label": {"enum": ["positive", "negative"]}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}},
        {"tools": (ToolDefinition(name="add", description="", parameters={}),)},
        {"tools": (ToolDefinition(name="", description="Adds two numbers.", parameters={}),)},
        {"tools": (ToolDefinition(name="", description="", parameters={"type": "object", "properties": {"a": {}}}),)},
    ],
    ids=["schema", "format", "tool's name", "tool's description", "tool's parameters"],
)
def test_what_is_sent_beside_the_messages_counts(attached: dict[str, Any]) -> None:
    nothing = (ToolDefinition(name="", description="", parameters={}),) if "tools" in attached else ()
    bare = ChatRequest(model="m", messages=(user("Superb."),), tools=nothing)
    more = ChatRequest(model="m", messages=(user("Superb."),), **attached)
    assert prompt_tokens(more) > prompt_tokens(bare)
