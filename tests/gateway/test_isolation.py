"""A workspace sees nothing of another: every route is asked with a key of another one, and with none.

What another workspace owns answers exactly as what does not exist, shows nothing, and stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import iter_route_contexts

from producer.gateway.access import PUBLIC_PATHS
from producer.gateway.app import create_app
from producer.gateway.http.strict_json import StrictJsonRoute
from schemas import Settings
from tests.at_work import Works
from tests.gateway.operations import Asked, Operation, asked, operations
from tests.gateway.tenant import MARK, Names, Tenant, tenant_of
from tests.served_gateway import ServedGateway

# Whoever asks for these says no more than that the gateway is there, and how it is.
PUBLIC = {"/healthz", "/readyz", "/openapi.json", "/metrics"}
STRANGER = "stranger"


@pytest.fixture(scope="module")
def tenant(works: Works) -> Iterator[Tenant]:
    """The workspace that owns something."""
    with tenant_of(works) as tenant:
        yield tenant


def app() -> FastAPI:
    return create_app(Settings())


def private() -> list[Asked]:
    return [each for each in asked(app()) if each.operation.path not in PUBLIC]


def send(client: httpx.Client, each: Asked, names: Names) -> httpx.Response:
    answer = client.request(**each.request(names))
    assert answer.status_code == 501 or answer.status_code < 500, (each.operation.name, answer.text)
    return answer


def shown(answer: httpx.Response) -> str:
    """Return all that an answer says."""
    return f"{sorted(answer.headers.items())}\n{answer.text}"


def without_names(text: str, each: Asked, names: Names) -> str:
    """Return the text without what the request named: an answer may repeat that, and no more."""
    told = unquote(str(each.request(names)))
    for value in (names.address, *names.all(), names.environment):
        if value in told:
            text = text.replace(value, "<named>")
    return text


def test_what_is_public_is_listed_here() -> None:
    assert set(PUBLIC_PATHS) == PUBLIC
    assert {each.path for each in operations(app())} & PUBLIC >= {"/openapi.json"}


def test_every_route_that_is_not_public_wants_a_key(gateway: ServedGateway, tenant: Tenant) -> None:
    with httpx.Client(base_url=gateway.url, trust_env=False) as nobody:
        for each in private():
            answer = send(nobody, each, tenant.ended)
            assert answer.status_code == 401, (each.operation.name, answer.text)
            assert answer.headers["www-authenticate"] == "Bearer"
        unknown = nobody.get("/v1/nothing-is-here")
        assert unknown.status_code == 401


def test_every_route_that_is_not_public_reads_its_body_strictly() -> None:
    routes = list(iter_route_contexts(app().routes))
    lenient = {each.path_format for each in routes if not isinstance(each.original_route, StrictJsonRoute)}
    assert lenient <= PUBLIC
    assert len(routes) > len(PUBLIC)


def test_the_openapi_document_says_so() -> None:
    for path, methods in app().openapi()["paths"].items():
        for method, operation in methods.items():
            assert ("security" in operation) == (path not in PUBLIC), f"{method} {path}"


def test_a_stranger_meets_nothing_of_another_workspace_and_changes_nothing_there(
    gateway: ServedGateway, tenant: Tenant
) -> None:
    rows, held, secrets = tenant.rows(), tenant.held(), (MARK, tenant.signing_secret)
    with gateway.client(STRANGER) as stranger:
        for names in (tenant.ended, tenant.running):
            for each in private():
                answer = send(stranger, each, names)
                what = f"{each.operation.name} {answer.status_code}: {answer.text}"
                said = without_names(shown(answer), each, names)
                assert not [word for word in (*names.all(), *secrets) if word in said], what
                if each.names_something:
                    assert answer.status_code in {403, 404, 501} | each.sample.refused, what
                    nothing = send(stranger, each, names.unlike())
                    assert answer.status_code == nothing.status_code, what
                    said_of_nothing = without_names(nothing.text, each, names.unlike())
                    assert without_names(answer.text, each, names) == said_of_nothing, what
    assert tenant.rows() == rows
    assert tenant.held() == held


def test_an_assistant_that_is_not_shared_with_a_key_is_not_used_by_it(gateway: ServedGateway, tenant: Tenant) -> None:
    with gateway.client(tenant.workspace, assistants=[f"{tenant.workspace}/tests/other"]) as client:
        for each in private():
            if each.uses_assistant:
                answer = send(client, each, tenant.ended)
                assert answer.status_code in {403, 404, 501}, (each.operation.name, answer.text)
                # Names may be repeated, they are of the key's own workspace; texts have a space behind the mark.
                assert f"{MARK} " not in shown(answer), each.operation.name


def test_the_owner_meets_all_of_it(gateway: ServedGateway, tenant: Tenant) -> None:
    """Else the tests above would say nothing: what they name is there, and how they ask is right."""
    # What deletes comes last, and what is within another thing before that.
    order = ("GET", "POST", "PUT", "PATCH", "DELETE")
    with gateway.client(tenant.workspace) as owner:
        for each in sorted(private(), key=lambda it: (order.index(it.operation.method), -it.operation.path.count("/"))):
            answer = send(owner, each, tenant.ended)
            what = f"{each.operation.name} {answer.status_code}: {answer.text}"
            assert answer.status_code < 400 or answer.status_code in each.sample.owner, what


@pytest.mark.parametrize(
    ("method", "path", "says"),
    [
        ("GET", "/v1/news/{news_id}", "PATH_PARAMETERS has no news_id"),
        ("POST", "/v1/jobs/{job_id}/praise", "SAMPLES has no entry"),
        ("DELETE", "/v1/everything", "SAMPLES has no entry"),
    ],
)
def test_a_route_that_nobody_says_how_to_ask_for_fails_this_file(method: str, path: str, says: str) -> None:
    router = APIRouter()

    @router.api_route(path, methods=[method], include_in_schema=False)
    def new(request: Any) -> None: ...

    application = app()
    application.include_router(router)
    assert Operation(method, path) in operations(application)
    with pytest.raises(AssertionError, match=f"{method} .*: {says}"):
        asked(application)
