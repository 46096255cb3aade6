"""The OpenAI-compatible assistants path and its `/agents/` twin (CONTRACT.md rows 43-58).

- Routes: `completions.py`, `agents.py`. `sessions.py` are its conversations, `errors.py` declares the errors.
"""

from __future__ import annotations

from producer.gateway.dialects.agent import agents, completions

ROUTERS = (completions.router, agents.router)
