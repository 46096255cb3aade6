"""The HTTP gateway: three assistant dialects, OpenAI's, and our own. It enqueues and reads; it never runs a job.

A request goes `http → access → dialect → calls → queue` and comes back as the dialect's body:

- `app.py` builds the application of `parts.py`; `__main__.py` serves it. `http/` is what all of HTTP shares.
- `access.py` says who calls (`keys.py`, `checked_keys.py`), what they may do, and how often (`request_limit.py`).
- `problem.py` is every error that a caller can meet, `bodies.py` the one map from these to each dialect's bodies,
  `failures.py` that from a job's end to a problem, `faults.py` that from a broken schema to what is wrong where.
- `calls.py` enqueues a job and waits for its end, or for what can keep it from one (`obstacles.py`); `streams.py`
  relays its tokens, each once (`relayed.py`); both wait by `switchboard.py`, and `waiters.py` cancels what nobody waits
  for any more. `idempotency.py` makes one job of two requests.
- `dialects/` has a package for each dialect: its routes, its request models and its answers. They do not know each
  other. `chat/` is what those share that speak OpenAI's chat completions.
- What several dialects read and write: `stored_assistant.py` and `models.py`, `threads.py` and what is in them
  (`thread_messages.py`, `thread_calls.py`), `files.py`; `tools.py` says which tools a caller may bring, `hosted.py`
  which assistants of other services, `continued.py` in which threads its jobs may stand, and `sharing.py` what a key
  sees of the tables.
- `parts.py` is what the routes use, each of it once; `in_thread.py` runs there what blocks.
"""
