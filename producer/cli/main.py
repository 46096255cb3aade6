"""`assistq`: the entry point, ready for a signal before anything that takes time is loaded."""

from __future__ import annotations

import signal
import sys
from types import FrameType


class Terminated(BaseException):
    """SIGTERM arrived."""


def main() -> None:
    """Run the command line and exit with its status."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        # Loading takes most of a second, in which Ctrl-C must be no traceback.
        from producer.cli.commands import run_command  # noqa: PLC0415

        status = run_command()
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except Terminated:
        status = 128 + signal.SIGTERM
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does; Python would complain at its exit.
        sys.stderr.close()
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def _terminate(_signum: int, _frame: FrameType | None) -> None:
    raise Terminated
