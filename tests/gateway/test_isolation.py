"""A workspace sees nothing of another: every route is asked with a key of another one, and with none.

What another workspace owns answers exactly as what does not exist, shows nothing, and stays as it is. To a key that
only some assistants are shared with, what is of the others shows nothing either (producer/gateway/access.py).
"""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import quote, unquote

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import iter_route_contexts

from producer.gateway.access import PUBLIC_PATHS
from producer.gateway.app import create_app
from producer.gateway.http.strict_json import StrictJsonRoute
from schemas import Settings
from tests.gateway.operations import Asked, Operation, asked, operations
from tests.gateway.tenant import MARK, Names, Tenant
from tests.served_gateway import ServedGateway

# Whoever asks for these says no more than that the gateway is there, and how it is.
PUBLIC = {"/healthz", "/readyz", "/openapi.json", "/metrics"}
STRANGER = "stranger"
# What a key with some assistants of a workspace meets all the same: the scope `webhooks` is for the whole of it.
OF_THE_WORKSPACE = ("/v1/webhooks/",)
# Who names an assistant here that is not shared with the key gets an empty page.
LISTS_NOTHING = {"GET /v1/jobs"}


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


def told_of_others(text: str, each: Asked, names: Names) -> list[str]:
    """Return what an answer tells of the workspace's things that it was not asked with; its own name is no secret."""
    said = without_names(text, each, names).replace(names.workspace, "<own>")
    return [word for word in (*names.all(), MARK) if word in said]


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


def test_a_key_that_another_assistant_is_shared_with_meets_nothing_of_the_rest_and_changes_nothing(
    gateway: ServedGateway, tenant: Tenant
) -> None:
    with gateway.client(tenant.workspace, assistants=[f"{tenant.workspace}/tests/other"]) as narrow:
        rows, held = tenant.rows(), tenant.held()
        for names in (tenant.ended, tenant.running):
            for each in private():
                if each.operation.path.startswith(OF_THE_WORKSPACE):
                    continue
                answer = send(narrow, each, names)
                what = f"{each.operation.name} {answer.status_code}: {answer.text}"
                if (each.names_something or each.uses_assistant) and each.operation.name not in LISTS_NOTHING:
                    assert answer.status_code in {403, 404, 501} | each.sample.refused, what
                assert not told_of_others(shown(answer), each, names), what
        # The key's own row names what it has made.
        made_anew = {"api_keys"}
        after = tenant.rows()
        assert all(kept <= after[table] for table, kept in rows.items() if table not in made_anew)
        assert tenant.held() == held


def test_a_cursor_that_is_made_up_or_another_keys_shows_a_key_nothing_more(
    gateway: ServedGateway, tenant: Tenant
) -> None:
    far = base64.urlsafe_b64encode(json.dumps(["9999-01-01T00:00:00+00:00", "z"]).encode()).decode()
    lists = [
        each
        for each in private()
        if each.operation.method == "GET"
        and each.sample.query is None
        and not each.operation.path.startswith(OF_THE_WORKSPACE)
    ]
    narrow = gateway.client(tenant.workspace, assistants=[f"{tenant.workspace}/tests/other"])
    with narrow, gateway.client(STRANGER) as stranger, gateway.client(tenant.workspace) as owner:
        for each in lists:
            asked = each.request(tenant.ended)
            page = owner.request(**asked, params={"limit": 1})
            told = page.json() if page.headers["content-type"] == "application/json" else {}
            cursors = [far, *([told["next_cursor"]] if isinstance(told, dict) and told.get("next_cursor") else [])]
            for params in [{"cursor": cursor} for cursor in cursors] + [
                {"after": name} for name in tenant.ended.all() if name in str(told)
            ]:
                for client in (narrow, stranger):
                    answer = client.request(**asked, params=params)
                    assert answer.status_code < 500, (each.operation.name, params, answer.text)
                    said = shown(answer).replace(str(params.get("after")), "<named>")
                    assert not told_of_others(said, each, tenant.ended), (each.operation.name, params, answer.text)


def test_a_name_whose_slashes_are_escaped_is_no_way_round(gateway: ServedGateway, tenant: Tenant) -> None:
    names, escaped = tenant.ended, quote(tenant.ended.address, safe="")
    narrow = gateway.client(tenant.workspace, assistants=[f"{tenant.workspace}/tests/other"])
    with narrow, gateway.client(STRANGER) as stranger:
        for each in private():
            path = str(each.request(names)["url"])
            if names.address in path:
                for client in (narrow, stranger):
                    answer = client.request(**{**each.request(names), "url": path.replace(names.address, escaped)})
                    assert answer.status_code in {403, 404, 405}, (each.operation.name, answer.text)
                    assert not told_of_others(shown(answer), each, names), (each.operation.name, answer.text)


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
