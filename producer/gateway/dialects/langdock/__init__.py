"""Langdock's API (CONTRACT.md rows 59-84).

- Routes: `completions.py`, `assistants.py`, `attachments.py`. `errors.py` declares the errors.
- A completion: `request.py` is what comes in, with the files that it names (`attached.py`), `answer.py` what goes out.
- `stored.py` are the assistants that callers make, `attachment_kinds.py` which files are taken and what a model sees of
  them, `extract_text.py` the program that reads PDF and DOCX.
"""

from __future__ import annotations

from producer.gateway.dialects.langdock import assistants, attachments, completions

ROUTERS = (completions.router, assistants.router, attachments.router)
