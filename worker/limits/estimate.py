"""How many tokens a call will need, said before it is made: a count of the prompt that needs no vocabulary.

A tokenizer would be exact for one provider's models only, and its vocabulary takes 75 MB on disk and 150 MB
in each process. Instead a text's bytes are told apart by what they are (letters, digits, punctuation, scripts),
and each kind, and each place where one kind follows another, has a weight: bytes.translate and bytes.count
do all the work, at 20 to 60 MB/s of one core. The weights are a fit to o200k (ops/bench/fit_token_weights.py).

The error of one text of some 130 to 800 characters against o200k, then how much more or less all texts together
come to than in each vocabulary; the fit has seen none of them (ops/bench/token_estimate.py, which says how):

| text                    | mean | p95  | o200k | cl100k | DeepSeek V4 | SmolLM2 |
|-------------------------|------|------|-------|--------|-------------|---------|
| english                 |   2% |   4% |   +1% |    +1% |         -1% |     -4% |
| german                  |   6% |  11% |   -4% |   -27% |        -20% |    -46% |
| french, spanish, polish |  12% |  22% |   -8% |   -22% |        -14% |    -39% |
| russian                 |   8% |  23% |   +3% |   -43% |         -4% |    -66% |
| chinese                 |   3% |   5% |   -1% |   -32% |        +35% |    -54% |
| japanese, korean        |   8% |  13% |   -8% |   -38% |         +1% |    -64% |
| arabic, hebrew, greek   |  14% |  28% |   +9% |   -55% |         -8% |    -60% |
| hindi, thai             |  12% |  27% |   +3% |   -63% |        -18% |    -75% |
| code                    |   5% |  12% |   +3% |    +4% |         -6% |    -12% |
| json                    |   4% |  10% |   +3% |    +3% |         +0% |    -16% |
| numbers, csv            |   3% |   8% |   -1% |    -1% |         -1% |    -40% |
| ids, urls               |   8% |  18% |   -3% |    -5% |         -5% |    -30% |
| markdown                |   7% |  12% |   -5% |    -5% |         -7% |    -15% |
| emoji, capitals, rules  |   8% |  19% |   +6% |    -2% |         +2% |    -25% |

What another vocabulary, a chat template or hidden instructions add is learned from what the provider
counts (learned.py); until then the count is raised by a margin there.
"""

from __future__ import annotations

import json
import math
from typing import Any

from schemas.chat import ImagePart, Message
from worker.providers.base import ChatRequest

# Role markers and separators that chat templates put around each message, and around all.
TOKENS_PER_MESSAGE = 4
TOKENS_PER_REQUEST = 3
# A high-detail image costs a hosted model some 765 to 1,500 tokens.
TOKENS_PER_IMAGE = 1500

# The kinds of bytes; of a character beyond ASCII its first byte tells the script, the others are left out.
_KINDS = (
    (0x09, 0x0D, b"\n"),
    (0x20, 0x20, b" "),
    (0x30, 0x39, b"0"),
    (0x41, 0x5A, b"A"),
    (0x61, 0x7A, b"a"),
    (0xC2, 0xC2, b"e"),  # signs of Latin-1
    (0xC3, 0xCD, b"u"),  # Latin with accents, phonetic signs
    (0xCE, 0xCF, b"g"),  # Greek
    (0xD0, 0xD3, b"y"),  # Cyrillic
    (0xD4, 0xDF, b"r"),  # Armenian, Hebrew, Arabic and their neighbours
    (0xE0, 0xE0, b"i"),  # scripts of India, Thai
    (0xE1, 0xE1, b"u"),  # Vietnamese, Georgian, Khmer, …
    (0xE2, 0xE2, b"e"),  # typographic signs, arrows, currencies
    (0xE3, 0xE3, b"k"),  # Kana and Chinese punctuation
    (0xE4, 0xE9, b"c"),  # Chinese characters
    (0xEA, 0xED, b"h"),  # Hangul
    (0xEE, 0xFF, b"x"),  # full-width forms, emoji
)
_OTHER = b"P"  # punctuation, control characters
CONTINUATION = bytes(range(0x80, 0xC0))

# Tokens for each place where the pattern stands; for JOINED_WEIGHTS all Latin and Greek letters are `a`.
WEIGHTS = {b"A": 0.128, b"aA": 0.838, b"0": 0.285}
JOINED_WEIGHTS = {
    b"a": 0.081,
    b" a": 0.602,
    b"a0": 1.754,
    b"P0": 0.718,
    b" 0": 1.907,
    b"\n0": 1.243,
    b"P": 0.12,
    b" P": 1.348,
    b"aP": 1.158,
    b"0P": 0.64,
    b"\n": 0.3,
    b"  ": 0.08,
}
# Only where a text has more than ASCII.
SCRIPT_WEIGHTS = {
    b"u": 1.336,
    b"g": 0.3,
    b"r": 0.242,
    b" r": 0.891,
    b"i": 0.393,
    b"e": 0.4,
    b"k": 0.759,
    b"c": 0.818,
    b"h": 0.751,
    b"x": 1.531,
    b"y": 0.224,
    b"yP": 2.659,
}


def _kinds() -> bytes:
    kinds = bytearray(_OTHER * 256)
    for first, last, kind in _KINDS:
        kinds[first : last + 1] = kind * (last + 1 - first)
    return bytes(kinds)


KIND_OF = _kinds()
JOINED = bytes.maketrans(b"Aug", b"aaa")


def text_tokens(text: str) -> int:
    """Return about how many tokens a text is; more text is never fewer."""
    if text.isascii():
        kinds = text.encode().translate(KIND_OF)
        tokens = 0.0
    else:
        # A lone surrogate cannot be sent, which is found out elsewhere.
        kinds = text.encode(errors="replace").translate(KIND_OF, CONTINUATION)
        tokens = _weighed(kinds, SCRIPT_WEIGHTS)
    return math.ceil(tokens + _weighed(kinds, WEIGHTS) + _weighed(kinds.translate(JOINED), JOINED_WEIGHTS))


def message_tokens(message: Message) -> int:
    """Return about how many tokens a message is."""
    tokens = TOKENS_PER_MESSAGE + text_tokens(message.text)
    for call in message.tool_calls:
        tokens += TOKENS_PER_MESSAGE + text_tokens(call.name) + text_tokens(call.arguments)
    if isinstance(message.content, tuple):
        tokens += TOKENS_PER_IMAGE * sum(isinstance(part, ImagePart) for part in message.content)
    return tokens


def prompt_tokens(request: ChatRequest) -> int:
    """Return about how many tokens a provider reads of the request: messages, tools, and the form of the answer."""
    tokens = TOKENS_PER_REQUEST + sum(map(message_tokens, request.messages))
    for tool in request.tools:
        tokens += text_tokens(tool.name) + text_tokens(tool.description) + _json_tokens(tool.parameters)
    return tokens + _json_tokens(request.response_schema) + _json_tokens(request.response_format)


def _json_tokens(value: Any) -> int:
    return 0 if value is None else text_tokens(json.dumps(value, ensure_ascii=False, default=str))


def _weighed(kinds: bytes, weights: dict[bytes, float]) -> float:
    return sum(weight * kinds.count(pattern) for pattern, weight in weights.items())
