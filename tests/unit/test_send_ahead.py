from __future__ import annotations

import itertools
from threading import Event

import pytest

from producer.send_ahead import SendAhead

WAIT_S = 30.0


class Server:
    """Takes chunks: the first call waits until it may go on, then fails if it is to."""

    def __init__(self, *, failure: Exception | None = None, busy: bool = False) -> None:
        self.got: list[list[int]] = []
        self.begun = Event()
        self.may_go_on = Event()
        self._failure = failure
        if not busy:
            self.may_go_on.set()

    def send(self, chunks: list[int]) -> None:
        self.begun.set()
        assert self.may_go_on.wait(WAIT_S)
        self.got.append(chunks)
        if self._failure is not None:
            raise self._failure

    @property
    def all(self) -> list[int]:
        return [chunk for chunks in self.got for chunk in chunks]


def test_all_chunks_are_sent_in_their_order_when_the_context_is_left():
    server = Server()
    with SendAhead(server.send, ahead=3) as sending:
        for number in range(100):
            sending.put(number)
    assert server.all == list(range(100))


def test_chunks_that_wait_while_one_is_sent_go_together():
    server = Server(busy=True)
    with SendAhead(server.send, ahead=3) as sending:
        sending.put(0)
        assert server.begun.wait(WAIT_S)
        for number in (1, 2, 3):
            sending.put(number)
        server.may_go_on.set()
    assert server.got == [[0], [1, 2, 3]]


def test_an_error_is_raised_at_a_later_put_and_nothing_more_is_sent():
    server = Server(failure=RuntimeError("refused"))
    put = []

    def put_for_ever() -> None:
        with SendAhead(server.send, ahead=2) as sending:
            for number in itertools.count():
                sending.put(number)
                put.append(number)

    with pytest.raises(RuntimeError, match="refused"):
        put_for_ever()
    assert len(server.got) == 1
    assert server.all == list(range(len(server.all)))
    assert len(put) >= len(server.all) - 1


def test_an_error_of_the_last_chunk_is_raised_at_the_end():
    def put_one() -> None:
        with SendAhead(Server(failure=RuntimeError("refused")).send, ahead=2) as sending:
            sending.put(1)

    with pytest.raises(RuntimeError, match="refused"):
        put_one()


def test_an_error_of_whoever_makes_the_chunks_is_raised_after_those_before_are_sent():
    server = Server()

    def put_two() -> None:
        with SendAhead(server.send, ahead=2) as sending:
            sending.put(1)
            sending.put(2)
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        put_two()
    assert server.all == [1, 2]


def test_an_interrupt_waits_for_nothing_and_only_what_is_on_its_way_is_sent():
    server = Server(busy=True)
    sending = SendAhead(server.send, ahead=2)

    def put_some() -> None:
        with sending:
            sending.put(0)
            assert server.begun.wait(WAIT_S)
            sending.put(1)
            sending.put(2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        put_some()
    assert server.got == []
    server.may_go_on.set()
    sending._thread.join(WAIT_S)
    assert not sending._thread.is_alive()
    assert server.got == [[0]]
