"""Without a provider's URL: the real local model, or one line that says what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.command_line import Installation

EXAMPLES = Path(__file__).resolve().parents[2] / "ops" / "examples"

# Python runs this at its start; after it, no finder knows the library.
WITHOUT_XLLAMACPP = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == "xllamacpp" else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""


@pytest.mark.local_model
def test_rows_of_the_example_are_labelled_by_the_real_local_model(tmp_path: Path) -> None:
    with Installation(tmp_path) as shell:
        lines = (EXAMPLES / "reviews.csv").read_text("utf-8").splitlines(keepends=True)
        file = shell.file("reviews.csv", "".join(lines[:5]))
        ended = shell.run(
            "run", file, "--assistant", EXAMPLES / "sentiment.yaml", "--expect", "label", "--json", timeout_s=110
        )
        assert ended.code == 0, ended.err
        assert {result["output"] for result in shell.results()} <= {"positive", "negative"}
        assert [result["model"] for result in shell.results()] == ["smollm2-135m"] * 4
        assert ended.json["requests"] == 4
        assert ended.json["completion_tokens"] > 0
        assert 0 <= ended.json["accuracy"] <= 1
        shell.nothing_left()


def test_without_a_url_and_without_the_extra_one_line_names_both_ways(tmp_path: Path) -> None:
    with Installation(tmp_path) as shell:
        hiding = shell.directory / "hiding"
        hiding.mkdir()
        (hiding / "sitecustomize.py").write_text(WITHOUT_XLLAMACPP, "utf-8")
        environment = {"PYTHONPATH": os.pathsep.join([str(hiding), os.environ.get("PYTHONPATH", "")])}
        ended = shell.run("run", shell.reviews(2), "--assistant", shell.sentiment(), env=environment)
        ended.refused("there is no provider; set ASSISTQ_PROVIDER_BASE_URL", "pip install 'assistq[local]'")
        assert len(ended.err[ended.err.index("error:") :].splitlines()) == 1
        shell.nothing_left()
