"""Our own API: jobs, job batches, assistants, threads and webhooks, with problem bodies (RFC 9457).

- Routes: `jobs.py`, `job_batches.py`, `assistants.py`, `threads.py`, `webhooks.py`, `webhook_subscriptions.py`.
- What comes in: `job_requests.py`, `batch_requests.py`; files of rows by `uploads.py` and `batch_submission.py`.
- What goes out: `job_view.py`, `batch_view.py`, `batch_results.py`; as they happen `job_events.py`, `batch_events.py`;
  `waiting.py` for who waits. `problem_details.py` declares the errors.
- What SQL has, a page at a time (`pages.py`): `*_records.py`.
"""

from __future__ import annotations

from producer.gateway.dialects.own import assistants, job_batches, jobs, threads, webhook_subscriptions, webhooks

ROUTERS = (
    jobs.router,
    job_batches.router,
    assistants.router,
    threads.router,
    webhooks.router,
    webhook_subscriptions.router,
)
