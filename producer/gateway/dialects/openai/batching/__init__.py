"""Batches as OpenAI has them, over batches of ours: a file of requests in, two files of answers out.

`validating → in_progress → finalizing → completed`, or `failed`, `expired`, `cancelled`; a batch has the id of the
batch of ours that runs its rows.

- `store.py` is the table. A row of it that needs work is claimed by one gateway at a time (`lease.py`); who lost its
  lease can write nothing, and what it did before does no harm: rows enter the queue once, by their number, and files
  count only when the batch names them.
- `keeper.py` looks for such rows and has them worked on, in threads: `intake.py` checks the whole file, then enqueues
  its lines (`request_lines.py`); `finish.py` writes the files (`result_files.py`, `result_lines.py`) once the
  batch has ended, and in the same transaction how it ended and whom to tell (`endings.py`).
"""
