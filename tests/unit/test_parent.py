"""A worker process does not outlive its master, however early that dies."""

from __future__ import annotations

import subprocess
import sys

from tests.processes import is_alive, until

# The child learns by its pipe that its parent is gone, and only then asks for its end to be tied to it.
SCRIPT = """
import multiprocessing, os, signal, time
from worker.parent import die_with_parent

def child(told, tell):
    tell.close()
    print(os.getpid(), flush=True)
    try:
        told.recv_bytes()
    except EOFError:
        die_with_parent()
    time.sleep(600)

context = multiprocessing.get_context("fork")
told, tell = context.Pipe(duplex=False)
context.Process(target=child, args=(told, tell)).start()
signal.pause()
"""


def test_a_process_whose_parent_died_while_it_booted_ends() -> None:
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    until(lambda: not is_alive(pid), what="the child has ended")
