"""The results of a batch as a download in constant memory, in the columns that `assistq results` writes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from io import StringIO
from itertools import chain, islice
from typing import Literal

from fastapi.responses import StreamingResponse

from producer.bulk.results import write_results
from producer.gateway.access import Caller
from producer.gateway.parts import Parts
from schemas.assistant import workspace_of
from schemas.result import JobResult

Format = Literal["csv", "jsonl"]

MEDIA_TYPES: dict[Format, str] = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}
_RESULTS_AT_ONCE = 500


# `format` is the name that callers use.
async def results_download(
    parts: Parts,
    batch_id: str,
    caller: Caller,
    *,
    format: Format,  # noqa: A002
) -> StreamingResponse:
    """Return the answer that sends the results which are there now, in the order of the rows.

    The first of them are read before: what goes wrong until then is the request's own error.
    """
    texts = _texts(parts.records.results(batch_id), caller, format)
    first = await parts.in_thread(next, texts, "")
    headers = {"content-disposition": f'attachment; filename="{batch_id.replace(":", "_")}.{format}"'}
    return StreamingResponse(_sent(parts, first, texts), headers=headers, media_type=MEDIA_TYPES[format])


async def _sent(parts: Parts, first: str, texts: Iterator[str]) -> AsyncIterator[bytes]:
    text = first
    while text:
        # Half a surrogate pair in a reply must not cost the whole file of results.
        yield text.encode("utf-8", "backslashreplace")
        text = await parts.in_thread(next, texts, "")


def _texts(results: Iterator[JobResult], caller: Caller, format: Format) -> Iterator[str]:  # noqa: A002
    own = (result for result in results if workspace_of(result.assistant) == caller.workspace)
    heading = _written(iter(()), format)
    # Of a batch without results yet the heading is all there is.
    first = next(own, None)
    yield heading if first is None else _written(chain([first], islice(own, _RESULTS_AT_ONCE - 1)), format)
    while text := _written(islice(own, _RESULTS_AT_ONCE), format).removeprefix(heading):
        yield text


def _written(results: Iterator[JobResult], format: Format) -> str:  # noqa: A002
    out = StringIO(newline="")
    write_results(results, out, format=format)
    return out.getvalue()
