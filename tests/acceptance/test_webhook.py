"""A batch's webhook: one signed POST when it ends, and later where the receiver was down."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook

from tests.command_line import Installation
from tests.processes import until

Received = list[tuple[dict[str, str], bytes]]


@contextmanager
def receiver(port: int = 0) -> Iterator[tuple[str, Received]]:
    """A server that takes every webhook; yields its URL and what it got."""
    received: Received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook", received
        server.shutdown()
        thread.join()


def test_the_end_of_a_run_is_told_once_signed_and_later_if_the_receiver_was_down(shell: Installation) -> None:
    command = (shell.reviews(5), "--assistant", shell.sentiment())
    batch_id = shell.run("submit", *command).out.strip()
    with receiver() as (url, received):
        # The webhook may be named when a batch goes on.
        ended = shell.run("run", *command, "--webhook", url)
        assert ended.code == 0, ended.err
        assert f"webhook delivered: HTTP 204 from {url}" in ended.err
        late = shell.run("run", *command, "--webhook", f"{url}/other")
        assert f"nothing is sent to {url}/other: the batch has ended before" in late.err
        ((headers, body),) = received
    secret = shell.run("webhooks", "secret", "demo").out.strip()
    event = Webhook(secret).verify(body, headers)
    assert event["type"] == "batch.completed"
    assert event["data"]["batch_id"] == batch_id
    assert event["data"]["counts"] == {"succeeded": 5}

    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    url = f"http://127.0.0.1:{port}/hook"
    ended = shell.run("run", shell.reviews(6, "more.csv"), "--assistant", shell.sentiment(), "--webhook", url)
    assert ended.code == 0, ended.err
    assert "webhook not delivered: " in ended.err
    assert "`assistq up` tries again" in ended.err
    pending, delivered = shell.run("webhooks", "list", "--json").json
    assert (pending["state"], pending["attempts"], pending["url"]) == ("pending", 1, url)
    assert (delivered["state"], delivered["attempts"]) == ("delivered", 1)

    with receiver(port) as (_, received):
        up = shell.start("up")
        until(lambda: received, what="it is sent again", timeout_s=30)
        up.process.send_signal(signal.SIGTERM)
        assert up.ended().code == 143
        ((headers, body),) = received
    (delivery,) = shell.run("webhooks", "list", "--batch", pending["batch_id"], "--json").json
    assert (delivery["state"], delivery["attempts"]) == ("delivered", 2)
    assert headers["webhook-id"] == pending["id"]
    assert Webhook(secret).verify(body, headers)["data"]["counts"] == {"succeeded": 6}
    shell.nothing_left()
