"""Webhooks of jobs that are not to be recorded: content from a real Redis, deliveries in real databases, real HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy import Engine
from sqlmodel import Session, select
from standardwebhooks import Webhook

from producer import Producer
from schemas import JobResult, Status, names
from schemas.database import engine_for, ensure_tables
from schemas.tables import Delivery, Job
from tests.given import a_job, a_result, claimed
from tests.loopback_http import Answer, LoopbackHttp
from worker.events import Events
from worker.queue.queue import Claimed, JobQueue
from worker.store.base import Settlement
from worker.store.sql import SqlStore
from worker.webhooks.deliver import WebhookSender, webhook_client
from worker.webhooks.deliveries import Deliveries
from worker.webhooks.unrecorded import UnrecordedContent

pytestmark = pytest.mark.anyio

CANARY = "CANARY-words"
SCHEDULE_S = 5 + 300 + 1800 + 7200 + 18000 + 36000 + 36000
