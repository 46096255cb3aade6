"""What OpenAI documents for a chat completion and we do not serve: refused, with what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from producer.gateway.problem import Kind, Problem

# What asks for nothing.
_NOTHING: tuple[Any, ...] = (None, False, 0, [], {}, "")
_INSTEAD = {
    "logprobs": "the log probabilities of tokens are not kept; leave it out",
    "top_logprobs": "the log probabilities of tokens are not kept; leave it out",
    "logit_bias": "tokens are the provider's own here; say in a message what not to write",
    "audio": "answers are text; leave it out",
    "functions": "it is OpenAI's old form; send them as `tools`",
    "function_call": "it is OpenAI's old form; send it as `tool_choice`",
    "web_search_options": "no search runs here; give the assistant a tool that searches",
    "verbosity": "say in a message how long the answer is to be",
    "moderation": "nothing is moderated here; leave it out",
}


def refuse_unsupported(extra: Mapping[str, Any]) -> None:
    """Raise a Problem for the first parameter that would change the answer and cannot; unknown ones are ignored."""
    for name, instead in _INSTEAD.items():
        if extra.get(name) not in _NOTHING:
            raise _unsupported(name, instead)
    if extra.get("modalities") not in (None, ["text"]):
        raise _unsupported("modalities", "answers are text; leave it out, or send ['text']")


def _unsupported(name: str, instead: str) -> Problem:
    return Problem(Kind.BAD_REQUEST, f"`{name}` is not supported: {instead}", code="unsupported_parameter", param=name)
