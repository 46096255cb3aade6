"""Fixtures of the gateway's tests: one gateway and one worker for each file of tests."""

from collections.abc import Iterator

import httpx
import pytest

from tests.at_work import Scene, Works, scene, works
from tests.gateway.tenant import Tenant, tenant_of
from tests.served_gateway import ServedGateway

__all__ = ["client", "gateway", "scene", "works"]


@pytest.fixture(scope="module")
def gateway(works: Works) -> Iterator[ServedGateway]:
    """The gateway in front of the worker."""
    with ServedGateway(works) as served:
        yield served


@pytest.fixture(scope="module")
def tenant(works: Works) -> Iterator[Tenant]:
    """A workspace that has one of everything, for requests to name."""
    with tenant_of(works) as tenant:
        yield tenant


@pytest.fixture
def client(gateway: ServedGateway, scene: Scene) -> Iterator[httpx.Client]:
    """A client with a key of the scene's workspace, which may do all."""
    with gateway.client(scene.workspace) as client:
        yield client
