"""Serves one model file on loopback: `python -m producer.embedded.model_server --model FILE …`.

Prints one line of JSON on stdout: `{"url": …}` once it answers, or `{"error": …}` and exit
status 1. Ends with 0 on SIGTERM and SIGINT.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from typing import Any

_CONTEXT_TOKENS_OF_A_SLOT = 2048


def main() -> int:
    """Serve until a signal comes; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m producer.embedded.model_server", description=__doc__)
    parser.add_argument("--model", required=True, help="path of a GGUF file")
    parser.add_argument("--alias", required=True, help="the model's name in the API")
    parser.add_argument("--slots", type=int, default=4, help="calls that run at once")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--port", type=int, default=0, help="0: the system picks one")
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        server = _start(options)
    except (ImportError, OSError) as exc:
        return _refuse(_cannot_load(exc))
    except RuntimeError as exc:
        return _refuse(f"the local model server did not start with {options.model}: {exc}")
    _print_line({"url": server.listening_address})
    stop.wait()
    return 0


def _start(options: argparse.Namespace) -> Any:
    """Return the running server: it lives as long as the object that is returned."""
    import xllamacpp  # noqa: PLC0415 - an extra, that it cannot be loaded is told as a message

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.model_alias = {options.alias}
    params.hostnames, params.port = ["127.0.0.1"], options.port
    # n_ctx is the total; without kv_unified each slot gets its share.
    params.n_parallel, params.n_ctx = options.slots, options.slots * _CONTEXT_TOKENS_OF_A_SLOT
    params.kv_unified = params.fit_params = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    # The default is a prompt cache of 8 GiB.
    params.cache_ram_mib = 0
    params.verbosity = 1
    return xllamacpp.Server(params)


def _cannot_load(exc: Exception) -> str:
    if "libgomp" in str(exc):
        return "the local model needs the system library libgomp.so.1; install it: apt-get install libgomp1"
    return f"the local model's library xllamacpp cannot be loaded: {exc}"


def _refuse(error: str) -> int:
    _print_line({"error": error})
    return 1


def _print_line(message: dict[str, str]) -> None:
    print(json.dumps(message), flush=True)  # noqa: T201 - read by the parent


if __name__ == "__main__":
    sys.exit(main())
