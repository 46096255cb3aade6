"""`python -m worker`, but its processes import `overhead_profile`'s broker."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import worker.__main__ as worker_main

become = os.execve
MASTER = """
import sys
import worker.master as master
make = master.make_argument_parser
class Parser:
    def parse_args(self, arguments):
        return make().parse_args(["overhead_profile:broker", *arguments[1:]])
master.make_argument_parser = Parser
sys.exit(master.main(*sys.argv[1:]))
"""


def become_profiled(path: str, command: list[str], environment: Any) -> NoReturn:
    """Become the master of profiled processes."""
    become(path, [sys.executable, "-c", MASTER, *command[3:]], environment)


if __name__ == "__main__":
    os.execve = become_profiled  # type: ignore[assignment]
    worker_main.main()
