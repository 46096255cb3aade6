"""The 1,500 chat rows that peers were measured with: some 60 prompt tokens each, 238,120 in all (theirs: 238,121)."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from pathlib import Path

from ops.bench import sim_chat

ROWS = 1500
MAX_TOKENS = 200
INSTRUCTIONS = "You answer customers in a short, plain paragraph."
# Chosen so that the completions, which follow from the texts, come to the total above.
_EDITION = 1217
_CHARS = range(131, 181)
_WORDS = """
    the parcel order arrived late again and nobody at the desk could say where it had been since Monday morning
    please tell me how to return shoes that do not fit or whether a voucher works for two blue lamps instead
    my invoice shows delivery twice while your page promised free shipping above forty so what is right here
"""


def questions(count: int = ROWS, *, edition: int = _EDITION) -> Iterator[str]:
    """Yield the rows' texts, all different; the first are the same however many are asked for."""
    words, chosen = _WORDS.split(), random.Random(0)  # noqa: S311 - a workload
    for number in range(count):
        text = " ".join([f"Question {edition}.{number}:", *chosen.choices(words, k=max(_CHARS) // 3)])
        yield text[: chosen.choice(_CHARS) - 1] + "?"


def tokens(texts: Iterator[str]) -> int:
    """Return what a provider will charge for these rows, each asked once."""
    total = 0
    for text in texts:
        messages = [INSTRUCTIONS, text]
        prompt = "\x1e".join(messages)
        total += sim_chat.prompt_tokens(messages) + sim_chat.completion_tokens(prompt, max_tokens=MAX_TOKENS)
    return total


def write_rows(path: Path, *, count: int = ROWS) -> None:
    """Write the rows as a CSV."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["custom_id", "question"])
        writer.writerows((f"q{number}", text) for number, text in enumerate(questions(count)))


def write_assistant(path: Path, *, model: str) -> None:
    """Write the assistant file for the rows."""
    path.write_text(
        f"assistant: bench/quota/answer\nmodel: {model}\ninstructions: {INSTRUCTIONS}\n"
        f'template:\n  - {{role: user, content: "{{{{ question }}}}"}}\nmax_tokens: {MAX_TOKENS}\n',
        "utf-8",
    )
