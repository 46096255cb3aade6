"""How many tokens a call will need, said before it is made."""

from __future__ import annotations

import math
from collections.abc import Iterable

from schemas.chat import Message

# English text has some 4 bytes a token with the usual tokenizers, code and other scripts
# fewer; 3 errs towards reserving too much, which the settling gives back.
BYTES_PER_TOKEN = 3
# Role markers and separators that chat templates put around each message, and around all.
TOKENS_PER_MESSAGE = 8
TOKENS_PER_REQUEST = 24
# What a completion is taken to need when nobody bounded it.
UNBOUNDED_COMPLETION_TOKENS = 1024


def call_tokens(messages: Iterable[Message], *, max_tokens: int | None) -> int:
    """Return a cautious estimate of prompt plus completion of one call, in tokens."""
    prompt = TOKENS_PER_REQUEST
    for message in messages:
        prompt += TOKENS_PER_MESSAGE + math.ceil(len(message.content.encode()) / BYTES_PER_TOKEN)
    return prompt + (UNBOUNDED_COMPLETION_TOKENS if max_tokens is None else max_tokens)
