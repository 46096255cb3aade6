"""`kill -9` of `assistq submit` in the middle of a file: the same command enqueues what is missing, once."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from schemas import names
from tests.command_line import Installation
from tests.processes import until

ROWS = 60_000
KILLED_AFTER = 2_000


def the_file(shell: Installation, suffix: str) -> Path:
    path = shell.reviews(ROWS)
    if suffix == ".csv":
        return path
    rows = path.read_text("utf-8").splitlines()[1:]
    columns = list(zip(*(row.split(",") for row in rows), strict=True))
    parquet = path.with_suffix(".parquet")
    table = pa.table(dict(zip(("custom_id", "review", "label"), map(list, columns), strict=True)))
    pq.write_table(table, parquet, row_group_size=7_000)
    return parquet


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_upload_that_was_killed_goes_on_and_each_row_is_enqueued_once(
    tmp_path: Path, valkey_url: str, suffix: str
) -> None:
    client = redis.Redis.from_url(valkey_url)

    def enqueued() -> int:
        batches = cast("list[bytes]", client.keys(names.batch("*")))
        return sum(int(cast("bytes", client.hget(batch, "enqueued")) or 0) for batch in batches)

    def waiting() -> list[str]:
        lines = cast("list[bytes]", client.keys(names.line("*")))
        return [job_id.decode() for line in lines for job_id in cast("list[bytes]", client.lrange(line, 0, -1))]

    with Installation(tmp_path, ASSISTQ_REDIS_URL=valkey_url) as shell:
        command = ("submit", the_file(shell, suffix), "--assistant", shell.sentiment())
        running = shell.start(*command)
        until(lambda: enqueued() >= KILLED_AFTER, what="rows are enqueued", timeout_s=60)
        running.process.kill()
        assert running.process.wait(10) == -signal.SIGKILL
        at_the_kill = waiting()
        assert KILLED_AFTER <= len(at_the_kill) < ROWS

        ended = shell.run(*command, timeout_s=90)
        assert ended.code == 0, ended.err
        batch_id = ended.out.strip()
        # In the order of the file, each row once: those from before the kill, then the others.
        assert waiting() == [f"{batch_id}.{row}" for row in range(ROWS)]
        assert enqueued() == ROWS
        assert cast("bytes", client.hget(names.batch(batch_id), "total")) == str(ROWS).encode()

        again = shell.run(*command, timeout_s=90)
        assert again.code == 0, again.err
        assert (again.out.strip(), len(waiting())) == (batch_id, ROWS)
    client.close()
