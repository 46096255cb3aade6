"""What callers of the gateway do under load: one function for each kind of request, and what it should answer."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

WORKSPACE, PROJECT, ASSISTANT, MODEL = "load", "bench", "clerk", "loaded"
ADDRESS = f"{WORKSPACE}/{PROJECT}/{ASSISTANT}"
_AGENT = f"/api/v1/compatibility/openai/v1/assistants/{PROJECT}:{ASSISTANT}/chat/completions"
_LANGTAIL = f"/{ADDRESS}/production"
_TEXT = b"What is said here is long enough. " * 300


@dataclass(slots=True)
class Mix:
    """Callers of one session; `answers` counts (kind, status), `wrong` keeps what was not expected."""

    session: aiohttp.ClientSession
    url: str
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _numbers: Any = field(default_factory=itertools.count)

    async def one(self) -> None:
        """Make one request of a kind by chance."""
        kinds: list[Callable[[], Awaitable[None]]] = [
            self._chat,
            self._chat_stream,
            self._agent,
            self._agent_stream,
            self._langtail,
            self._langtail_stream,
            self._langdock,
            self._langdock_stream,
            self._job,
            self._reads,
            self._upload,
            self._vanish,
            self._vanish,
            self._wrong_requests,
        ]
        await random.choice(kinds)()  # noqa: S311 - a mix

    def _said(self, **more: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": f"Question {next(self._numbers)}"}], **more}

    async def _ask(self, kind: str, method: str, path: str, *expected: int, **request: Any) -> Any:
        """Send it and read all; return the JSON of an answer that is some."""
        try:
            async with self.session.request(method, self.url + path, **request) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError) as exc:
            self.wrong.append(f"{kind}: {type(exc).__name__}: {exc}")
            return None
        self.answers[kind, answer.status] += 1
        broken = answer.content_type == "text/event-stream" and ('"error":{' in text or "event: error" in text)
        if answer.status not in expected or broken:
            self.wrong.append(f"{kind}: HTTP {answer.status}: {text[:300]}")
            return None
        return await answer.json() if answer.content_type == "application/json" else text

    async def _chat(self) -> None:
        await self._ask("chat", "POST", "/v1/chat/completions", 200, json=self._said(model=MODEL))

    async def _chat_stream(self) -> None:
        body = self._said(model=MODEL, stream=True)
        text = await self._ask("chat stream", "POST", "/v1/chat/completions", 200, json=body)
        if text is not None and "[DONE]" not in text:
            self.wrong.append(f"chat stream without its end: {text[-300:]}")

    async def _agent(self) -> None:
        await self._ask("agent", "POST", _AGENT, 200, json=self._said())

    async def _agent_stream(self) -> None:
        await self._ask("agent stream", "POST", _AGENT, 200, json=self._said(stream=True))

    async def _langtail(self) -> None:
        await self._ask("langtail", "POST", _LANGTAIL, 200, json=self._said())

    async def _langtail_stream(self) -> None:
        await self._ask("langtail stream", "POST", _LANGTAIL, 200, json=self._said(stream=True))

    def _langdock_body(self, **more: Any) -> dict[str, Any]:
        return self._said(assistant={"name": "Clerk", "instructions": "Be brief.", "model": MODEL}, **more)

    async def _langdock(self) -> None:
        await self._ask("langdock", "POST", "/assistant/v1/chat/completions", 200, json=self._langdock_body())

    async def _langdock_stream(self) -> None:
        body = self._langdock_body(stream=True)
        await self._ask("langdock stream", "POST", "/assistant/v1/chat/completions", 200, json=body)

    async def _job(self) -> None:
        body = self._said(assistant=ADDRESS)
        # 200: it had ended before it was looked at.
        made = await self._ask("job", "POST", "/v1/jobs", 200, 202, json=body)
        if made is not None:
            await self._ask("job read", "GET", f"/v1/jobs/{made['id']}", 200)
            await self._ask("job waited for", "GET", f"/v1/jobs/{made['id']}", 200, params={"wait_s": "20"})
            await self._ask("job events", "GET", f"/v1/jobs/{made['id']}/events", 200)

    async def _reads(self) -> None:
        for path in ("/v1/jobs", "/v1/threads", "/v1/batches", "/v1/job-batches", "/v1/assistants", "/v1/models"):
            await self._ask("list", "GET", path, 200)
        await self._ask("health", "GET", "/readyz", 200)

    async def _upload(self) -> None:
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        line = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n'
        form.add_field("file", line * 500, filename="lines.jsonl")
        made = await self._ask("upload", "POST", "/v1/files", 200, data=form)
        if made is not None:
            await self._ask("file read", "GET", f"/v1/files/{made['id']}/content", 200)
            await self._ask("file deleted", "DELETE", f"/v1/files/{made['id']}", 200)
        form = aiohttp.FormData()
        form.add_field("file", _TEXT, filename="text.txt", content_type="text/plain")
        await self._ask("attachment", "POST", "/attachment/v1/upload", 200, data=form)

    async def _vanish(self) -> None:
        """Leave after a moment, before or in the middle of the answer, or of one's own body."""
        self.answers["vanished", 0] += 1
        body = self._said(model=MODEL, stream=random.random() < 0.5)  # noqa: S311 - a mix
        request: dict[str, Any] = {"json": body}
        path = "/v1/chat/completions"
        if random.random() < 0.2:  # noqa: S311
            path, request = "/v1/files", {"data": _broken_off()}
        try:
            async with asyncio.timeout(random.uniform(0.001, 0.1)):  # noqa: S311
                async with self.session.post(self.url + path, **request) as answer:
                    await answer.content.read(10)
                    answer.close()
        except (TimeoutError, aiohttp.ClientError):
            return

    async def _wrong_requests(self) -> None:
        text = {"content-type": "application/json"}
        await self._ask("broken JSON", "POST", "/v1/chat/completions", 400, data=b'{"messages": [', headers=text)
        await self._ask("wrong type", "POST", "/v1/chat/completions", 400, json={"model": 1, "messages": "Hi"})
        await self._ask("no UTF-8", "POST", "/v1/jobs", 400, data=b'{"assistant": "\xff"}', headers=text)
        await self._ask("unknown assistant", "POST", _AGENT.replace(ASSISTANT, "nobody"), 404, json=self._said())
        await self._ask("unknown job", "GET", "/v1/jobs/job_none", 404)
        await self._ask("no key", "GET", "/v1/jobs", 401, headers={"authorization": "Bearer none"})


async def _broken_off() -> Any:
    yield b"--b\r\n"
    await asyncio.sleep(60)
