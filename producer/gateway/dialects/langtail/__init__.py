"""Langtail's API (CONTRACT.md rows 1-42).

- Routes: `invoke.py`, `threads.py`. `request.py` is what comes in, `config.py` a stored prompt as Langtail shows it.
"""

from __future__ import annotations

from producer.gateway.dialects.langtail import invoke, threads

ROUTERS = (threads.router, invoke.router)
