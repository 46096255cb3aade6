"""Fixtures of the fault tests."""

from tests.command_line import provider, shell

__all__ = ["provider", "shell"]
