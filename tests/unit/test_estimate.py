"""The estimate of a call's tokens errs to the side of too many."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.chat import Message
from tests.given import user
from worker.limits.estimate import (
    BYTES_PER_TOKEN,
    TOKENS_PER_MESSAGE,
    TOKENS_PER_REQUEST,
    UNBOUNDED_COMPLETION_TOKENS,
    call_tokens,
)


@pytest.mark.parametrize(
    ("contents", "max_tokens", "tokens"),
    [
        ([""], 1, TOKENS_PER_REQUEST + TOKENS_PER_MESSAGE + 1),
        (["abc"], 8, TOKENS_PER_REQUEST + TOKENS_PER_MESSAGE + 1 + 8),
        (["abcd"], 8, TOKENS_PER_REQUEST + TOKENS_PER_MESSAGE + 2 + 8),
        (["abc", "abc"], 8, TOKENS_PER_REQUEST + 2 * TOKENS_PER_MESSAGE + 2 + 8),
        (["ääää"], 8, TOKENS_PER_REQUEST + TOKENS_PER_MESSAGE + math.ceil(8 / BYTES_PER_TOKEN) + 8),
        (["abc"], None, TOKENS_PER_REQUEST + TOKENS_PER_MESSAGE + 1 + UNBOUNDED_COMPLETION_TOKENS),
    ],
)
def test_it_is_prompt_plus_completion(contents: list[str], max_tokens: int | None, tokens: int) -> None:
    assert call_tokens([user(content) for content in contents], max_tokens=max_tokens) == tokens


@given(st.lists(st.text()), st.text(), st.integers(1, 4000))
def test_more_text_never_needs_less(contents: list[str], more: str, max_tokens: int) -> None:
    messages = [user(content) for content in contents]
    longer = [*messages, Message(role="system", content=more)]
    assert call_tokens(longer, max_tokens=max_tokens) > call_tokens(messages, max_tokens=max_tokens)
