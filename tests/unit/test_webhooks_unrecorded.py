"""What may be recorded of a receiver's answer about a job that is not to be recorded."""

from __future__ import annotations

import pytest

from worker.webhooks.decide import Answer
from worker.webhooks.unrecorded import without_words


@pytest.mark.parametrize(
    ("status", "said", "recorded"),
    [
        (204, None, None),
        (500, "HTTP 500: {CANARY}", "HTTP 500; the words are not recorded"),
        (None, "RemoteProtocolError: b'CANARY'", "RemoteProtocolError; the words are not recorded"),
        (None, "no answer within 20 s", "no answer within 20 s"),
        (None, "refused: the host 'x' is private; name it", "refused: the host 'x' is private; name it"),
    ],
)
def test_a_receiver_is_not_quoted_and_our_own_words_are_kept(
    status: int | None, said: str | None, recorded: str | None
) -> None:
    assert without_words(Answer(status=status, error=said)) == Answer(status=status, error=recorded)
