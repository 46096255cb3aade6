"""Two minutes of `ops/chaos`: whatever is killed, stopped or cut off, nothing is lost and nothing is done twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Two minutes of disturbances, and the bounded ways to the beginning and to the end.
ENDS_WITHIN_S = 20 * 60


@pytest.mark.timeout(ENDS_WITHIN_S + 60)
def test_two_minutes_of_chaos_leave_no_breach() -> None:
    chaos = subprocess.Popen(
        [sys.executable, "-m", "ops.faults.chaos", "--minutes", "2", "--seed", "1", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = chaos.communicate(timeout=ENDS_WITHIN_S)
    finally:
        # It ends all that it started.
        if chaos.poll() is None:
            chaos.send_signal(signal.SIGTERM)
            chaos.communicate(timeout=60)
    assert chaos.returncode == 0, out + err
    told = json.loads(out)
    assert told["kills"] >= 10, told["disturbances"]
    assert told["jobs"]["succeeded"] >= 20, told["jobs"]
