"""A simulated provider: an OpenAI-compatible chat server with strict limits and an audit of what it served.

Each model is a lane of its own, with limits and an audit of its own. A prompt is charged when it
arrives, a completion when the call ends. One process and one event loop, and no await between a
look at a limit and its charge: the figures are exact.

    POST /v1/chat/completions   GET /v1/models
    GET /audit                  {"now_s": …, "models": {NAME: figures of sim_audit.Audit.report}}
    POST /reset                 forget every lane, and let calls that are held go on

Run it alone: `.venv/bin/python ops/bench/sim_provider.py --help`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal, assert_never, cast

import click
import uvicorn

from ops.bench import sim_chat
from ops.bench.sim_audit import Audit
from ops.bench.sim_limits import Meter, Quota, Refusal, Remaining, Shape, meter

Clock = Callable[[], float]
Headers = list[tuple[bytes, bytes]]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# answer: 200 · error: 500, nothing sold · cut: sold, but half of the reply's body is missing
Fate = Literal["answer", "error", "cut"]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How calls go: seconds, and shares of all calls from 0 to 1.

    Each call takes `latency_s`, or varies about that as its median, lognormally with
    `latency_sigma`; a slow one takes `slow_s` more. Calls of `held_model` last until a reset.
    """

    latency_s: float = 0.0
    latency_sigma: float = 0.0
    error_share: float = 0.0
    cut_share: float = 0.0
    slow_share: float = 0.0
    slow_s: float = 30.0
    held_model: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A request that was let in, and what becomes of it."""

    number: int
    asked: sim_chat.Asked
    step_id: str | None
    takes_s: float
    fate: Fate
    lane: _Lane


class _Lane:
    """One model's limit and audit."""

    def __init__(self, quota: Quota) -> None:
        self.meter: Meter = meter(quota)
        self.audit = Audit()


class SimProvider:
    """The provider without its server: what arrives, what ends, what is left; time is what `clock` says, in seconds."""

    def __init__(
        self, quota: Quota, *, behaviour: Behaviour | None = None, seed: int = 0, clock: Clock = time.monotonic
    ) -> None:
        """Begin with full limits; the seed decides latencies and faults, in the order of arrival."""
        self.quota = quota
        self._behaviour = behaviour or Behaviour()
        self._random = random.Random(seed)  # noqa: S311 - a simulation
        self._clock = clock
        self._lanes: dict[str, _Lane] = {}
        self._numbers = 0

    def arrive(self, asked: sim_chat.Asked, *, step_id: str | None = None) -> Call | Refusal:
        """Charge the request and its prompt, or refuse it."""
        lane = self._lane(asked.model)
        now_s = self._clock()
        refusal = lane.meter.admit(now_s, asked.prompt_tokens)
        if refusal is not None:
            lane.audit.refused(now_s)
            return refusal
        lane.audit.admitted(now_s, prompt_tokens=asked.prompt_tokens)
        self._numbers += 1
        return Call(self._numbers, asked, step_id, takes_s=self._latency_s(asked), fate=self._fate(), lane=lane)

    def end(self, call: Call) -> None:
        """Charge the completion, unless the call fails; a call from before a reset counts there."""
        now_s = self._clock()
        if call.fate == "error":
            call.lane.audit.failed(now_s)
            return
        tokens = call.asked.completion_tokens
        call.lane.meter.charge(now_s, tokens)
        call.lane.audit.sold(
            now_s,
            completion_tokens=tokens,
            prompt=call.asked.digest,
            step_id=call.step_id,
            cut=call.fate == "cut",
        )

    def remaining(self, model: str) -> Remaining:
        """Return what is left of a model's limits."""
        return self._lane(model).meter.remaining(self._clock())

    def report(self) -> dict[str, Any]:
        """Return the audit of every model, as a JSON value."""
        models = {
            model: lane.audit.report(overdraft_tokens=lane.meter.overdraft_tokens)
            for model, lane in self._lanes.items()
        }
        return {"now_s": self._clock(), "models": models}

    def reset(self) -> None:
        """Forget every lane; limits are full again."""
        self._lanes.clear()

    def _lane(self, model: str) -> _Lane:
        lane = self._lanes.get(model)
        if lane is None:
            lane = self._lanes[model] = _Lane(self.quota)
        return lane

    def _latency_s(self, asked: sim_chat.Asked) -> float:
        behaviour = self._behaviour
        if asked.model == behaviour.held_model:
            return math.inf
        latency_s = behaviour.latency_s
        if behaviour.latency_sigma:
            latency_s *= self._random.lognormvariate(0, behaviour.latency_sigma)
        if behaviour.slow_share and self._random.random() < behaviour.slow_share:
            latency_s += behaviour.slow_s
        return latency_s

    def _fate(self) -> Fate:
        behaviour = self._behaviour
        if not behaviour.error_share and not behaviour.cut_share:
            return "answer"
        drawn = self._random.random()
        if drawn < behaviour.error_share:
            return "error"
        return "cut" if drawn < behaviour.error_share + behaviour.cut_share else "answer"


class SimApp:
    """The provider's ASGI application."""

    def __init__(self, provider: SimProvider, *, rate_headers: bool = False) -> None:
        """Serve this provider; with `rate_headers` each answer says what is left, as OpenAI does."""
        self._provider = provider
        self._rate_headers = rate_headers
        self._goes_on = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        body = await _body(receive)
        match (scope["method"], scope["path"]):
            case ("POST", "/v1/chat/completions"):
                await self._complete(scope, body, send)
            case ("GET", "/v1/models"):
                await _send(send, 200, json.dumps({"object": "list", "data": []}).encode())
            case ("GET", "/audit"):
                await _send(send, 200, json.dumps(self._provider.report()).encode())
            case ("POST", "/reset"):
                self._provider.reset()
                self._goes_on.set()
                self._goes_on = asyncio.Event()
                await _send(send, 200, b"{}")
            case _:
                await _send(send, 404, sim_chat.error("no such path", kind="invalid_request_error"))

    async def _complete(self, scope: Scope, body: bytes, send: Send) -> None:
        try:
            asked = sim_chat.read(body)
        except ValueError as exc:
            await _send(send, 400, sim_chat.error(str(exc), kind="invalid_request_error"))
            return
        arrived = self._provider.arrive(asked, step_id=_header(scope, b"idempotency-key"))
        if isinstance(arrived, Refusal):
            headers = _wait_headers(arrived) + self._left(asked.model)
            message = f"Rate limit reached for {asked.model}: not enough {arrived.short_of}"
            refusal = sim_chat.error(message, kind=arrived.short_of, code="rate_limit_exceeded")
            await _send(send, 429, refusal, headers)
            return
        try:
            if math.isinf(arrived.takes_s):
                await self._goes_on.wait()
            elif arrived.takes_s > 0:
                await asyncio.sleep(arrived.takes_s)
        finally:
            # Who has left meanwhile has bought it all the same.
            self._provider.end(arrived)
        await self._answer(arrived, send)

    async def _answer(self, call: Call, send: Send) -> None:
        match call.fate:
            case "error":
                fault = sim_chat.error("The server had an error", kind="server_error")
                await _send(send, 500, fault, self._left(call.asked.model))
            case "answer" if call.asked.stream:
                await _stream(send, sim_chat.chunks(call.asked, number=call.number), self._left(call.asked.model))
            case "answer" | "cut":
                reply = sim_chat.completion(call.asked, number=call.number)
                headers = self._left(call.asked.model)
                await _send(send, 200, reply, headers, cut=call.fate == "cut")
            case _:
                assert_never(call.fate)

    def _left(self, model: str) -> Headers:
        if not self._rate_headers:
            return []
        quota, left = self._provider.quota, self._provider.remaining(model)
        told = {
            "limit-requests": str(quota.rpm),
            "limit-tokens": str(quota.tpm),
            "remaining-requests": str(left.requests),
            "remaining-tokens": str(left.tokens),
            "reset-requests": _duration(left.reset_requests_s),
            "reset-tokens": _duration(left.reset_tokens_s),
        }
        return [(f"x-ratelimit-{name}".encode(), value.encode()) for name, value in told.items()]


async def _body(receive: Receive) -> bytes:
    message = await receive()
    body = cast("bytes", message.get("body", b""))
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    return body


async def _send(send: Send, status: int, body: bytes, headers: Headers | None = None, *, cut: bool = False) -> None:
    """Send an answer; one that is cut announces its whole length, and uvicorn closes the connection at its half."""
    base: Headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": base + (headers or [])})
    sent = body[: len(body) // 2] if cut else body
    await send({"type": "http.response.body", "body": sent, "more_body": cut})


async def _stream(send: Send, events: list[bytes], headers: Headers) -> None:
    """Send server-sent events, each as it comes."""
    base: Headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": base + headers})
    for event in events:
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b""})


def _header(scope: Scope, wanted: bytes) -> str | None:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), None)


def _wait_headers(refusal: Refusal) -> Headers:
    wait_s = refusal.retry_after_s
    if wait_s is None:
        return []
    # RFC 9110 knows whole seconds only; OpenAI tells the milliseconds beside them.
    return [
        (b"retry-after", str(math.ceil(wait_s)).encode()),
        (b"retry-after-ms", str(math.ceil(wait_s * 1000)).encode()),
    ]


def _duration(seconds: float) -> str:
    """Return seconds as OpenAI's headers have them: `12ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, left_s = divmod(seconds, 60)
    return f"{minutes:.0f}m{left_s:.3g}s" if minutes else f"{left_s:.3f}".rstrip("0").rstrip(".") + "s"


def _no_cut_replies(record: logging.LogRecord) -> bool:
    return "without completing response" not in record.getMessage()


_SHARE = click.FloatRange(0, 1)


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option(
    "--port", type=int, default=0, help="On 127.0.0.1; 0 picks one. The base URL is the first line on stdout."
)
@click.option("--shape", type=click.Choice(["bucket", "window", "none"]), default="bucket")
@click.option("--rpm", type=click.IntRange(1), default=500, help="Requests a minute of each model.")
@click.option("--tpm", type=click.IntRange(1), default=60_000, help="Tokens a minute of each model.")
@click.option("--capacity-s", type=float, default=60.0, help="What a bucket holds, in seconds of the limit.")
@click.option("--latency-s", type=click.FloatRange(0), default=0.0, help="Of each call; the median, if it varies.")
@click.option("--latency-sigma", type=click.FloatRange(0), default=0.0, help="Vary the latency lognormally.")
@click.option("--error-share", type=_SHARE, default=0.0, help="Of the calls, answered 500.")
@click.option("--cut-share", type=_SHARE, default=0.0, help="Of the calls: sold, and the connection cut in the reply.")
@click.option("--slow-share", type=_SHARE, default=0.0, help="Of the calls, that take --slow-s longer.")
@click.option("--slow-s", type=click.FloatRange(0), default=30.0)
@click.option("--held-model", help="Its calls last until a reset.")
@click.option("--rate-headers", is_flag=True, help="Send x-ratelimit-* with each answer.")
@click.option("--seed", type=int, default=0, help="Of latencies and faults.")
def main(
    *,
    port: int,
    shape: Shape,
    rpm: int,
    tpm: int,
    capacity_s: float,
    latency_s: float,
    latency_sigma: float,
    error_share: float,
    cut_share: float,
    slow_share: float,
    slow_s: float,
    held_model: str | None,
    rate_headers: bool,
    seed: int,
) -> None:
    """Serve until SIGTERM or SIGINT."""
    try:
        quota = Quota(shape, rpm=rpm, tpm=tpm, capacity_s=capacity_s)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    behaviour = Behaviour(latency_s, latency_sigma, error_share, cut_share, slow_share, slow_s, held_model)
    app = SimApp(SimProvider(quota, behaviour=behaviour, seed=seed), rate_headers=rate_headers)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="error",
        # Benches pause between runs; a client that comes back finds its connections open.
        timeout_keep_alive=600,
        timeout_graceful_shutdown=1,
    )
    logging.getLogger("uvicorn.error").addFilter(_no_cut_replies)
    with socket.create_server(("127.0.0.1", port), backlog=4096) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
