"""Bad input to every operation: an error in the dialect's own form, never our fault, and nothing enqueued.

On PostgreSQL, which refuses what SQLite takes: NUL, half characters, integers beyond 64 bits.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from producer.gateway.app import create_app
from schemas import Settings, names
from tests.at_work import Works
from tests.gateway.operations import PATH_PARAMETERS, SAMPLES, Asked, Operation, Sample, operations
from tests.gateway.tenant import HELD, Names, Tenant
from tests.served_gateway import ServedGateway

MAX_BODY = 100_000
JSON = {"content-type": "application/json"}
PUBLIC = {"/healthz", "/readyz", "/openapi.json", "/metrics"}
# By the beginning of a path, whose form its errors have; all else is Langtail's.
DIALECTS = (
    ("/api/v1/compatibility/openai/", "agent"),
    ("/assistant/", "langdock"),
    ("/attachment/", "attachment"),
    ("/v1/chat/", "openai"),
    ("/v1/files", "openai"),
    ("/v1/batches", "openai"),
    ("/v1/models", "openai"),
    ("/v1/", "own"),
)
# What stands in the place of a name in a path, as it is sent.
NAMES = {
    "NUL": "a%00b",
    "no UTF-8": "a%ffb",
    "half a character": "a%ED%A0%80b",
    "long": "x" * 5_000,
    "with a slash": "a%2Fb",
    "with a line's end": "a%0D%0Ab",
    "a number beyond 64 bits": "9" * 400,
    "dots": "%2E%2E",
    "not ASCII": "%F0%9F%92%A5",
}
# What stands in the place of a query's value, as it is sent.
QUERIES = {**NAMES, "empty": "", "NaN": "NaN", "negative": "-1", "a fraction": "1.5"}
# Whole bodies that are no request of anybody.
BODIES: dict[str, bytes] = {
    "empty": b"",
    "cut": b'{"messages": [{"role": "us',
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": "b"}'.encode("utf-16"),
    "null": b"null",
    "a list": b"[]",
    "a text": b'"text"',
    "a number": b"1",
    "deep list": b"[" * 40_000,
    "deep and whole": b'{"messages": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "deep object": b'{"messages":' * 5_000 + b"1" + b"}" * 5_000,
    "a form": b"a=b&c=d",
    "two": b"{}{}",
}
# What stands in the place of a field that the operation wants, as JSON.
VALUES: dict[str, str] = {
    "null": "null",
    "true": "true",
    "a number": "-1",
    "an integer beyond 64 bits": "9" * 400,
    "a number beyond doubles": "1e999",
    "NaN": "NaN",
    "infinity": "-Infinity",
    "a list": "[]",
    "a list of null": "[null]",
    "an object": '{"": {"": null}}',
    "half a character": '"\\ud800"',
    "NUL": '"a\\u0000b"',
    "raw NUL": '"a\x00b"',
    "deep": "[" * 300 + "]" * 300,
    "long": json.dumps("x" * 50_000),
}

_PART = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}\r\n'
_FORM = "multipart/form-data; boundary=b"
_TEXT_PART = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n'
# Content-Type and body; a file in a form that is none.
FORMS: dict[str, tuple[str | bytes | None, bytes]] = {
    "cut in a part": (_FORM, _PART[:-10]),
    "cut in a header": (_FORM, _PART[:40]),
    "cut before its end": (_FORM, _PART),
    "empty": (_FORM, b""),
    "no part": (_FORM, b"--b--\r\n"),
    "no boundary": ("multipart/form-data", _PART + b"--b--\r\n"),
    "an empty boundary": ("multipart/form-data; boundary=", _PART + b"--b--\r\n"),
    "another boundary": ("multipart/form-data; boundary=c", _PART + b"--b--\r\n"),
    "a boundary that is no ASCII": (b"multipart/form-data; boundary=\xff", _PART + b"--b--\r\n"),
    "no such charset": (_FORM + "; charset=nope", _TEXT_PART + b"batch\r\n--b--\r\n"),
    "another type": ("text/plain", _PART + b"--b--\r\n"),
    "another multipart": ("multipart/mixed; boundary=b", _PART + b"--b--\r\n"),
    "no type": (None, _PART + b"--b--\r\n"),
    "a part without a name": (_FORM, b'--b\r\ncontent-disposition: form-data; filename="a"\r\n\r\n{}\r\n--b--\r\n'),
    "a part without headers": (_FORM, b"--b\r\n\r\n{}\r\n--b--\r\n"),
    "a header without a colon": (_FORM, b"--b\r\ncontent-disposition form-data\r\n\r\n{}\r\n--b--\r\n"),
    "a name that is no UTF-8": (_FORM, _TEXT_PART.replace(b"purpose", b"\xff\xfe") + b"{}\r\n--b--\r\n"),
    "a header without bound": (_FORM, b"--b\r\nx: " + b"y" * 50_000 + b"\r\n\r\n{}\r\n--b--\r\n"),
    "a file that is a text": (_FORM, b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\n{}\r\n--b--\r\n'),
    "two files": (_FORM, _PART + _PART + b"--b--\r\n"),
    "many parts": (_FORM, b'--b\r\ncontent-disposition: form-data; name="a"\r\n\r\n\r\n' * 1_500 + b"--b--\r\n"),
    "a field that is too long": (_FORM, _TEXT_PART + b"x" * 80_000 + b"\r\n--b--\r\n"),
}  # fmt: skip
TAKE_KEYS = {
    "POST /v1/jobs",
    "POST /v1/job-batches",
    "POST /v1/chat/completions",
    "POST /api/v1/compatibility/openai/v1/agents/{agent_id}/chat/completions",
    "POST /api/v1/compatibility/openai/v1/assistants/{agent_id}/chat/completions",
}
# What has no field that must be there.
MAY_BE_EMPTY = {"POST /v2/threads"}
# What may be so all the same: a text is a text, and a job may bring no message.
_TEXTS = {
    "POST /assistant/v1/create name",
    "POST /assistant/v1/create instruction",
    "PATCH /assistant/v1/update name",
    "PUT /v1/assistants/{project}/{assistant} instructions",
    "POST /v1/chat/completions model",
    "POST /v2/threads/{thread_id}/messages content",
}
TAKES = {
    "null": {
        "POST /assistant/v1/create instruction",
        "POST /v2/threads/{thread_id} metadata",
        "POST /v2/threads/{thread_id}/messages content",
        "POST /v2/threads/{thread_id}/messages/{message_id} metadata",
    },
    "a list": {"POST /v1/jobs messages", "POST /v2/threads/{thread_id}/messages content"},
    "NUL": _TEXTS,
    "long": _TEXTS,
}


@pytest.fixture(scope="module")
def works(servers_dir: Any, tmp_path_factory: pytest.TempPathFactory, postgres_url_of_module: str) -> Iterator[Works]:
    """A worker on PostgreSQL."""
    with Works(tmp_path_factory.mktemp("works"), servers_dir=servers_dir, database_url=postgres_url_of_module) as works:
        yield works


@pytest.fixture(scope="module")
def gateway(works: Works) -> Iterator[ServedGateway]:
    """A gateway that takes small bodies."""
    limits = {"ASSISTQ_HTTP_MAX_BODY_BYTES": str(MAX_BODY), "ASSISTQ_HTTP_MAX_UPLOAD_BYTES": str(MAX_BODY)}
    with ServedGateway(works, **limits) as served:
        yield served


@pytest.fixture(scope="module")
def owner(gateway: ServedGateway, tenant: Tenant) -> Iterator[httpx.Client]:
    """A client of that workspace."""
    with gateway.client(tenant.workspace) as client:
        yield client


@pytest.fixture(autouse=True)
def _nothing_is_done(works: Works, tenant: Tenant) -> Iterator[None]:
    """No job is left and no provider asked; that an assistant has nothing to say, only the worker finds, in a job."""
    waiting, asked = set(works.redis.keys(names.job("*"))), questions(works)
    yield
    assert set(works.redis.keys(names.job("*"))) <= waiting
    assert questions(works) == asked


def questions(works: Works) -> int:
    """Return how often the provider was asked, by all but the tenant's own job, which it may be asked for anew."""
    return sum(HELD not in json.dumps(request.body) for request in works.provider.requests)


def send(client: httpx.Client, **request: Any) -> httpx.Response:
    try:
        return client.request(**request)
    except httpx.TransportError:
        # The server closed the connection after its answer before.
        return client.request(**request)


def all_operations() -> list[Operation]:
    return [each for each in operations(create_app(Settings())) if each.path not in PUBLIC]


def samples(*, json_body: bool = False) -> Iterator[Asked]:
    """Yield each way to ask for each operation, or for those alone whose body is JSON."""
    for operation in all_operations():
        for sample in SAMPLES.get(operation.name, (Sample(),)):
            if sample.json is not None or not json_body:
                yield Asked(operation, sample)


def dialect_of(path: str) -> str:
    return next((dialect for begin, dialect in DIALECTS if path.startswith(begin)), "langtail")


class Told:
    """Collects what is wrong with answers, so that one run tells all."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.answers = 0

    def look(self, answer: httpx.Response, what: str, *, path: str, statuses: set[int]) -> None:
        """Keep it unless it is a refusal with one of these statuses in the form of the path's dialect."""
        self.answers += 1
        if answer.status_code not in statuses or not in_form(answer, dialect_of(path)):
            self.wrong.append(f"{what}: {answer.status_code} {answer.headers.get('content-type')} {answer.text[:300]}")

    def __enter__(self) -> Told:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            assert self.answers
            assert not self.wrong, "\n".join(self.wrong)


def in_form(answer: httpx.Response, dialect: str) -> bool:
    """Return whether the answer is an error as the dialect's clients know it."""
    try:
        body = answer.json()
    except ValueError:
        return False
    type_ = answer.headers["content-type"]
    if dialect == "own":
        wants = {"type": str, "title": str, "status": int, "detail": str, "code": str}
        return type_ == "application/problem+json" and _has(body, wants) and body["status"] == answer.status_code
    if type_ != "application/json":
        return False
    match dialect:
        case "langdock":
            return _has(body, {"message": str})
        case "attachment":
            return _has(body, {"message": str, "error": str})
        case "agent" if answer.status_code == 422:
            return all(_has(each, {"loc": list, "msg": str, "type": str}) for each in body["detail"])
        case "agent":
            return _has(body, {"detail": str, "error": dict}) and _is_openai(body["error"])
        case "langtail" if isinstance(body["error"], str):
            return answer.status_code == 404
        case _:
            return _is_openai(body["error"])


def _is_openai(error: Any) -> bool:
    return _has(error, {"message": str, "type": str}) and {"param", "code"} <= error.keys()


def _has(body: Any, wants: dict[str, type]) -> bool:
    return isinstance(body, dict) and all(isinstance(body.get(name), kind) for name, kind in wants.items())


def refusals(path: str) -> set[int]:
    """Return the statuses of a request that breaks its schema."""
    if path.startswith("/project-prompt/"):
        # The key is asked first, which is of several projects.
        return {400, 404}
    return {400, 422} if dialect_of(path) == "agent" else {400}


@pytest.mark.parametrize("bad", NAMES.values(), ids=NAMES)
def test_a_name_in_a_path_that_is_none(owner: httpx.Client, tenant: Tenant, bad: str) -> None:
    with Told() as told:
        for each in samples():
            for name in each.operation.parameters:
                request = each.request(tenant.ended)
                values = {**{p: str(PATH_PARAMETERS[p](tenant.ended)) for p in each.operation.parameters}, name: bad}
                request["url"] = each.operation.path.format(**values)
                answer = send(owner, **request)
                what = f"{each.operation.name} {name}={bad[:20]}"
                told.look(answer, what, path=each.operation.path, statuses={400, 404, 405, 409, 422})


@pytest.mark.parametrize("bad", QUERIES.values(), ids=QUERIES)
def test_a_value_in_a_query_that_is_none(owner: httpx.Client, tenant: Tenant, bad: str) -> None:
    """What a text may be is a text: some of these find nothing, and that is an answer."""
    document = create_app(Settings()).openapi()["paths"]
    with Told() as told:
        for operation in all_operations():
            sample = SAMPLES.get(operation.name, (Sample(),))[0]
            declared = document.get(operation.path, {}).get(operation.method.lower(), {}).get("parameters", [])
            for name in [each["name"] for each in declared if each["in"] == "query"]:
                request = Asked(operation, sample).request(tenant.ended)
                request["params"] = None
                if sample.json is not None:
                    # So that nothing is made where the query is taken.
                    request["json"] = []
                elif operation.method == "POST":
                    continue
                request["url"] += f"?{name}={bad}"
                answer = send(owner, **request)
                if operation.method != "GET" or answer.status_code != 200:
                    what = f"{operation.name} {name}={bad[:20]}"
                    told.look(answer, what, path=operation.path, statuses=refusals(operation.path) | {404, 415})
                told.answers += 1


@pytest.mark.parametrize("bad", BODIES.values(), ids=BODIES)
def test_a_body_that_is_no_request(owner: httpx.Client, tenant: Tenant, bad: bytes) -> None:
    with Told() as told:
        for each in samples(json_body=True):
            if bad in {b"", b"null"} and each.operation.name in MAY_BE_EMPTY:
                continue
            answer = send(owner, **with_body(each, tenant.ended, bad))
            told.look(answer, each.operation.name, path=each.operation.path, statuses=refusals(each.operation.path))


@pytest.mark.parametrize("kind", VALUES)
def test_a_field_that_is_wrong(owner: httpx.Client, tenant: Tenant, kind: str) -> None:
    with Told() as told:
        for each in samples(json_body=True):
            assert each.sample.json is not None
            good = each.sample.json(tenant.ended)
            for name in good:
                what = f"{each.operation.name} {name}"
                if what in TAKES.get(kind, ()):
                    continue
                text = json.dumps({**good, name: "<bad>"}).replace('"<bad>"', VALUES[kind])
                answer = send(owner, **with_body(each, tenant.ended, text.encode()))
                told.look(answer, what, path=each.operation.path, statuses=refusals(each.operation.path) | {404})


@pytest.mark.parametrize("told_length", [True, False], ids=["told", "chunked"])
def test_a_body_that_is_too_large(owner: httpx.Client, tenant: Tenant, told_length: bool) -> None:
    with Told() as told:
        for each in samples():
            if each.sample.json is None and each.sample.files is None:
                continue
            form = each.sample.files is not None
            large = _PART[:-2] + b"x" * MAX_BODY if form else b'{"messages": "' + b"x" * MAX_BODY + b'"}'
            request = with_body(each, tenant.ended, large if told_length else iter([large[:5_000], large[5_000:]]))
            if form:
                request["headers"] = {"content-type": _FORM}
            answer = owner.request(**request)
            told.look(answer, each.operation.name, path=each.operation.path, statuses={413})


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=b"},
        {"content-type": "application/xml"},
        {"content-type": '/;;="'},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
    ids=["text", "form", "multipart", "XML", "nonsense", "gzip"],
)
def test_a_body_of_another_type(owner: httpx.Client, tenant: Tenant, headers: dict[str, str]) -> None:
    with Told() as told:
        for each in samples(json_body=True):
            if each.operation.name in MAY_BE_EMPTY:
                continue
            body = gzip.compress(b"{}") if "content-encoding" in headers else b'{"messages": "text"}'
            answer = send(owner, **{**with_body(each, tenant.ended, body), "headers": headers})
            statuses = refusals(each.operation.path) | {415}
            told.look(answer, each.operation.name, path=each.operation.path, statuses=statuses)


@pytest.mark.parametrize("kind", FORMS)
def test_a_form_that_is_none(owner: httpx.Client, kind: str) -> None:
    type_, body = FORMS[kind]
    with Told() as told:
        for path in ("/v1/files", "/attachment/v1/upload", "/v1/job-batches"):
            headers: Any = {} if type_ is None else {"content-type": type_}
            answer = send(owner, method="POST", url=path, content=body, headers=headers)
            told.look(answer, path, path=path, statuses={400, 413, 415})


def test_a_method_that_a_path_does_not_have(owner: httpx.Client, tenant: Tenant) -> None:
    known: dict[str, set[str]] = {}
    for operation in all_operations():
        known.setdefault(operation.path, set()).add(operation.method)
    with Told() as told:
        for path, methods in known.items():
            for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"} - methods:
                url = Asked(Operation(method, path), Sample()).request(tenant.ended)["url"]
                # Here an agent's id, which may have slashes, could be meant.
                statuses = {404, 405} if dialect_of(path) == "agent" else {405}
                told.look(send(owner, method=method, url=url), f"{method} {path}", path=path, statuses=statuses)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/nothing",
        "/v1/batches/a/nothing",
        "/v1/files/a/b/c",
        "/assistant/v1/nothing",
        "/attachment/v1/nothing",
        "/api/v1/compatibility/openai/v1/nothing",
        "/v2/threads/a/messages/b/c",
        "/v2/threads/%2E%2E/%2E%2E/%2E%2E",
        "/one/two/three/four/five",
        "/one/two%2Fthree/four/%00",
    ],
)
def test_a_path_that_is_none(owner: httpx.Client, path: str) -> None:
    with Told() as told:
        for method in ("GET", "POST", "DELETE"):
            answer = send(owner, method=method, url=path, **({"json": {}} if method == "POST" else {}))
            told.look(answer, f"{method} {path}", path=path, statuses={404, 405})


@pytest.mark.parametrize("key", [b"\xff\xfe", b"x" * 5_000, b"aq_" + b"9" * 400, b"a b"], ids=repr)
def test_a_key_that_is_none(gateway: ServedGateway, key: bytes) -> None:
    with Told() as told, httpx.Client(base_url=gateway.url, trust_env=False) as nobody:
        for path in ("/v1/models", "/v1/jobs", "/v2/threads", "/assistant/v1/models", "/a/b/c/d"):
            for name, value in ((b"authorization", b"Bearer " + key), (b"x-api-key", key)):
                answer = nobody.get(path, headers=[(name, value)])
                told.look(answer, f"{path} {name!r}", path=path, statuses={401})


@pytest.mark.parametrize("key", [b"\xff\xfe", b"x" * 5_000, b"", b"a b"], ids=["no UTF-8", "long", "empty", "blank"])
def test_an_idempotency_key_that_is_none(owner: httpx.Client, tenant: Tenant, key: bytes) -> None:
    with Told() as told:
        for each in samples(json_body=True):
            if each.operation.name in TAKE_KEYS:
                request = each.request(tenant.ended)
                answer = send(owner, **request, headers=[(b"idempotency-key", key)])
                told.look(answer, each.operation.name, path=each.operation.path, statuses={400, 422})


def with_body(each: Asked, there: Names, body: bytes | Iterator[bytes]) -> dict[str, Any]:
    """Return a request for the operation with this body in the place of its own."""
    request = each.request(there)
    for part in ("json", "files", "data"):
        request.pop(part, None)
    return {**request, "content": body, "headers": JSON}
