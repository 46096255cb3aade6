"""What is declared, what is locked and what is installed agree."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "ops" / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DIRECT = [
    Requirement(line)
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for line in group
    if not line.startswith("assistq")
]
LOCKED = {
    requirement.name: requirement for requirement in map(Requirement, re.findall(r"^[^\s#].*$", LOCK, re.MULTILINE))
}


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_the_lock_holds_a_version_inside_the_declared_range(requirement: Requirement) -> None:
    locked = LOCKED[requirement.name.lower()]
    (pin,) = locked.specifier
    assert pin.operator == "=="
    assert requirement.specifier.contains(pin.version)


def test_the_lock_names_no_index_and_no_path() -> None:
    assert not re.findall(r"https?:|file:|--|\s/\w", LOCK)


def test_the_command_leads_to_a_function() -> None:
    module, function = PROJECT["scripts"]["assistq"].split(":")
    assert callable(getattr(import_module(module), function))
