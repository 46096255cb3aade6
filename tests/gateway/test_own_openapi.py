"""Our own API is as its OpenAPI document says."""

from __future__ import annotations

from typing import Any

from producer.gateway.app import create_app
from schemas import Settings

OWN = ("/v1/jobs", "/v1/job-batches", "/v1/assistants", "/v1/threads", "/v1/webhooks")


def references(value: Any) -> set[str]:
    """Return what the value refers to."""
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_every_route_declares_its_problems_and_all_that_it_refers_to_is_there() -> None:
    document = create_app(Settings()).openapi()
    own = {path: methods for path, methods in document["paths"].items() if path.startswith(OWN)}
    assert len(own) > 20
    for path, methods in own.items():
        for method, operation in methods.items():
            for status in ("400", "401", "403", "404", "default"):
                assert "application/problem+json" in operation["responses"][status]["content"], (method, path)
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= known
    # What a caller must not say is not offered.
    assert "id" not in document["components"]["schemas"]["JobRequest"]["properties"]
    assert "workspace" not in document["components"]["schemas"]["InlineRequest"]["properties"]
