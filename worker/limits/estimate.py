"""How many tokens a call will need, said before it is made."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from schemas.chat import ImagePart, Message

# English text has some 4 bytes a token with the usual tokenizers, code and other scripts
# fewer; 3 errs towards reserving too much, which the settling gives back.
BYTES_PER_TOKEN = 3
# Role markers and separators that chat templates put around each message, and around all.
TOKENS_PER_MESSAGE = 8
TOKENS_PER_REQUEST = 24
# A high-detail image costs a hosted model some 765 to 1,500 tokens.
TOKENS_PER_IMAGE = 1500
# What a completion is taken to need when nobody bounded it.
UNBOUNDED_COMPLETION_TOKENS = 1024


def message_tokens(message: Message) -> int:
    """Return a cautious estimate of one message's tokens."""
    tokens = TOKENS_PER_MESSAGE + text_tokens(message.text)
    for call in message.tool_calls:
        tokens += TOKENS_PER_MESSAGE + text_tokens(call.name) + text_tokens(call.arguments)
    if isinstance(message.content, tuple):
        tokens += TOKENS_PER_IMAGE * sum(isinstance(part, ImagePart) for part in message.content)
    return tokens


def call_tokens(
    messages: Iterable[Message], *, max_tokens: int | None, choices: int = 1, attached: Iterable[Any] = ()
) -> int:
    """Return a cautious estimate of prompt plus completion of one call, in tokens.

    `attached` is what else is sent and read: tool definitions and schemas, as JSON values.
    """
    prompt = TOKENS_PER_REQUEST + sum(message_tokens(message) for message in messages)
    prompt += sum(text_tokens(json.dumps(value, default=str)) for value in attached)
    return prompt + choices * (UNBOUNDED_COMPLETION_TOKENS if max_tokens is None else max_tokens)


def text_tokens(text: str) -> int:
    """Return a cautious estimate of a text's tokens."""
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)
