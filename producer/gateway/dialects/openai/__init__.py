"""OpenAI's API: chat completions, models, files and batches.

- Routes: `chat.py`, `models.py`, `files.py`, `batches.py`. `errors.py` declares the errors, `unsupported.py` refuses
  what would change the answer and has no counterpart here.
- `batching/` works on batches behind the routes.
"""

from __future__ import annotations

from producer.gateway.dialects.openai import batches, chat, files, models

ROUTERS = (chat.router, models.router, files.router, batches.router)
