"""HTTP itself, of whatever dialect.

- `server.py` is uvicorn with limits on how slowly headers come, `limits.py` how large a body may be and how slow.
- `observed.py` counts and logs requests, and says whether the gateway is well.
- `strict_json.py` reads JSON bodies, `sse.py` writes events.
"""
