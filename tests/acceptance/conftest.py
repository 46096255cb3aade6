"""Fixtures of the acceptance tests."""

from tests.at_work import scene, works
from tests.command_line import provider, shell

__all__ = ["provider", "scene", "shell", "works"]
