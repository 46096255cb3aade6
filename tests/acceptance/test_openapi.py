"""The gateway answers as its OpenAPI document says, whatever it is sent: schemathesis over every operation.

A run is small and always the same; `FUZZ_EXAMPLES=200 .venv/bin/pytest tests/acceptance/test_openapi.py` is a large
one, with other examples each time.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from producer.gateway.app import create_app
from schemas import Settings, names
from tests.at_work import Works
from tests.gateway.operations import PATH_PARAMETERS, SAMPLES
from tests.gateway.tenant import Names, Tenant, tenant_of
from tests.processes import until
from tests.served_gateway import ServedGateway

LARGE = "FUZZ_EXAMPLES" in os.environ
# Of each operation, as the document allows and as many as it does not.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "3"))
ANSWERS_WITHIN_S = 60
DOCUMENT = create_app(Settings()).openapi()
OPERATIONS = [cast("Any", found).ok() for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()]
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def works(servers_dir: Path, tmp_path_factory: pytest.TempPathFactory, postgres_url_of_module: str) -> Iterator[Works]:
    """A worker on PostgreSQL, which refuses what SQLite takes; its provider answers all."""
    with Works(tmp_path_factory.mktemp("works"), servers_dir=servers_dir, database_url=postgres_url_of_module) as works:
        yield works


@pytest.fixture(scope="module")
def gateway(works: Works) -> Iterator[ServedGateway]:
    """The gateway in front of it."""
    with ServedGateway(works, ASSISTQ_HTTP_TIMEOUT_S=str(ANSWERS_WITHIN_S / 2)) as served:
        yield served


@pytest.fixture(scope="module")
def tenant(works: Works) -> Iterator[Tenant]:
    """The workspace that asks: it has one of everything."""
    with tenant_of(works) as tenant:
        yield tenant


@pytest.fixture(scope="module")
def session(gateway: ServedGateway, tenant: Tenant) -> Iterator[requests.Session]:
    """Who asks with a key of that workspace."""
    with requests.Session() as session:
        session.trust_env = False
        session.headers["authorization"] = f"Bearer {gateway.key(tenant.workspace)}"
        yield session


def test_the_document_is_the_one_that_is_served(gateway: ServedGateway, session: requests.Session) -> None:
    assert session.get(f"{gateway.url}/openapi.json", timeout=60).json() == DOCUMENT
    assert len(OPERATIONS) > 70


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_an_operation_answers_as_it_declares(
    operation: Any, mode: GenerationMode, gateway: ServedGateway, session: requests.Session, tenant: Tenant
) -> None:
    @settings(
        max_examples=EXAMPLES,
        derandomize=not LARGE,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if LARGE else [Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode), known=st.booleans())
    def answers(case: Any, known: bool) -> None:
        if known and operation.method.upper() != "DELETE":
            name_what_is_there(case, tenant.ended)
        answer = case.call(base_url=gateway.url, session=session, timeout=ANSWERS_WITHIN_S)
        said = f"{operation.label} {answer.status_code} {answer.text[:500]}\n{case.as_curl_command()[:2000]}"
        assert answer.status_code < 500 or not_served(operation, answer), said
        case.validate_response(answer, checks=CHECKS)

    answers()


def test_what_was_enqueued_ends(works: Works, tenant: Tenant) -> None:
    # There is one of these for each job that has not ended; the tenant's own is held.
    held = {names.job(tenant.running.job_id).encode()}
    until(lambda: set(works.redis.keys(names.job("*"))) <= held, what="all jobs have ended", timeout_s=120)


def name_what_is_there(case: Any, there: Names) -> None:
    """Let the request name the workspace's things, and have the fields that it must have, so that it goes further."""
    for parameter in case.path_parameters or {}:
        case.path_parameters[parameter] = PATH_PARAMETERS[parameter](there)
    bodies = [sample.json for sample in SAMPLES.get(case.operation.label, ()) if sample.json is not None]
    if bodies and isinstance(case.body, dict) and str(case.media_type).endswith("json"):
        # By the body itself, so that the same example is the same request.
        choice = random.Random(repr(case.body))  # noqa: S311 - no secret
        kept = choice.sample(sorted(case.body, key=repr), choice.randint(0, min(3, len(case.body))))
        case.body = {**{name: case.body[name] for name in kept}, **choice.choice(bodies)(there)}


def not_served(operation: Any, answer: Any) -> bool:
    """Return whether the answer is 501, and the operation says that it may be."""
    return answer.status_code == 501 and "501" in operation.definition.raw["responses"]
