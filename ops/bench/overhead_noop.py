"""The broker that `overhead`'s no-op workers import."""

from __future__ import annotations

import os

from ops.bench.overhead_parts import noop_broker

broker = noop_broker(os.environ["OVERHEAD_REDIS_URL"])
