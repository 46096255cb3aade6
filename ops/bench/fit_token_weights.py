"""Fits the weights of worker/limits/estimate.py to texts that a real tokenizer counted: `… COUNTS.json`.

The file is `{kind: [{"text": …, "o200k": tokens}, …]}`, like tests/fixtures/token_counts.json, which is kept for
measuring and must not be fitted to. Every kind of text weighs the same; the relative error is what is made small.
Needs numpy and scipy, which are no dependencies of ours: `uv run --with numpy,scipy ops/bench/fit_token_weights.py`.

The weights of 2026-11-21 were fitted to some 1,000 texts: manuals and FAQs of Debian in nine languages, fortunes,
half the articles of the Declaration of Human Rights in five, Python, C and JavaScript sources, and made-up JSON,
tables, identifiers and oddities. No weight is negative, so that more text is never fewer tokens; the lowest ones
below keep a text that consists of one kind only from counting as nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import lsq_linear

from worker.limits import estimate

LOWEST = {
    b"A": 0.1,
    b"0": 0.25,
    b"a": 0.07,
    b"P": 0.12,
    b"\n": 0.3,
    b"u": 0.3,
    b"g": 0.3,
    b"r": 0.2,
    b"i": 0.2,
    b"e": 0.4,
    b"k": 0.5,
    b"c": 0.5,
    b"h": 0.5,
    b"x": 0.5,
    b"y": 0.12,
}


def places(text: str) -> list[int]:
    """Return how often each pattern stands in the text, in the order of the tables."""
    kinds = text.encode(errors="replace").translate(estimate.KIND_OF, estimate.CONTINUATION)
    joined = kinds.translate(estimate.JOINED)
    plain = [*estimate.WEIGHTS, *estimate.SCRIPT_WEIGHTS]
    return [kinds.count(each) for each in plain] + [joined.count(each) for each in estimate.JOINED_WEIGHTS]


def main() -> None:
    """Print the pattern and weight of each."""
    texts = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    tokens = np.array([each["o200k"] for kind in texts.values() for each in kind], float)
    share = np.array([1 / np.sqrt(len(kind)) for kind in texts.values() for _ in kind])
    found = np.array([places(each["text"]) for kind in texts.values() for each in kind], float)
    patterns = [*estimate.WEIGHTS, *estimate.SCRIPT_WEIGHTS, *estimate.JOINED_WEIGHTS]
    lowest = np.array([LOWEST.get(pattern, 0.0) for pattern in patterns])
    fit = lsq_linear(found * (share / tokens)[:, None], share, bounds=(lowest, np.full_like(lowest, np.inf)))
    for pattern, weight in zip(patterns, fit.x, strict=True):
        print(f"{pattern!r}: {weight:.3f},")


if __name__ == "__main__":
    main()
