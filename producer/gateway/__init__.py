"""The HTTP gateway: three assistant dialects, OpenAI's, and our own. It enqueues and reads; it never runs a job.

A request goes `server → limits → access → dialect → calls → queue` and comes back as the dialect's body:

- `app.py` builds the application; `__main__.py` serves it.
- `access.py` says who calls (`keys.py`, `checked_keys.py`), what they may do, and how often (`request_limit.py`).
- `problem.py` is every error that a caller can meet, `bodies.py` the one map from these to each dialect's bodies,
  `failures.py` that from a job's end to a problem.
- `calls.py` enqueues a job and waits for its end, `streams.py` relays its tokens; both by `switchboard.py`.
- `dialects/` has a file for each dialect: its routes, its request models and its answers.
"""
