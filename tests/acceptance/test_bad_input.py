"""What a user gets for bad input: file, line, column and the mend; and nothing was enqueued."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.command_line import Ended, Installation, Running
from tests.loopback_provider import LoopbackProvider

HEADER = "custom_id,review,metadata\n"

# File name, content (None: no such file), then what the message has in it.
FILES: dict[str, tuple[str, str | bytes | None, tuple[str, ...]]] = {
    "missing": ("f.csv", None, ("f.csv: no such file; check the path",)),
    "empty": ("f.csv", "", ("f.csv: is empty; write a header line",)),
    "not UTF-8": (
        "f.csv",
        HEADER.encode() + b"a,fine,\nb,caf\xe9,\n",
        ("f.csv:3, column 'review': not UTF-8: byte 0xe9", "iconv"),
    ),
    "without a header": (
        "f.csv",
        "r1,a good one\nr2,a bad one\n",
        ("f.csv:1: the first line looks like data", "`custom_id,review`"),
    ),
    "duplicate custom_ids": (
        "f.csv",
        HEADER + "a,one,\nb,two,\na,three,\n",
        ("f.csv:4, column 'custom_id': 'a' stands in line 2 too; give each row an id of its own",),
    ),
    "ragged rows": (
        "f.csv",
        HEADER + "a,one,\nb,two\nc,three,,four\n",
        ("f.csv:3, column 'metadata': 2 fields, but the header has 3", "f.csv:4, column '4': 4 fields", "in quotes"),
    ),
    "a missing column": (
        "f.csv",
        "custom_id,text\na,one\n",
        ("f.csv:1, column 'review': there is no such column, and the template needs it", "rename"),
    ),
    "a missing variable": (
        "f.jsonl",
        '{"review": "one"}\n{"text": "two"}\n',
        ("f.jsonl:2, column 'review': variable 'review'", "is missing; add 'review' to the row"),
    ),
    "invalid JSON in metadata": (
        "f.csv",
        HEADER + 'a,one,"{""k"": 1}"\nb,two,{k: 1}\n',
        ("f.csv:3, column 'metadata': not valid JSON", "write a JSON object"),
    ),
    "a 20 MB field": (
        "f.csv",
        HEADER + "a,one,\nb," + "x" * 20_000_000 + ",\n",
        ("f.csv:3, column 'review': the field is larger than 1,048,576 bytes; shorten it",),
    ),
    "NUL bytes": (
        "f.csv",
        HEADER.encode() + b"a,one,\nb,t\0wo,\n",
        ("f.csv:3, column 'review': a NUL byte", "tr -d"),
    ),
}

GOOD = "assistant: demo/p/a\nmodel: m1\ntemplate:\n- {role: user, content: '{{ review }}'}\n"
ASSISTANTS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "missing": (None, ("a.yaml: no such file",)),
    "an unknown key": (GOOD + "temprature: 0\n", ("a.yaml:5: unknown key 'temprature'; did you mean 'temperature'?",)),
    "a wrong type": (GOOD + "max_tokens: many\n", ("a.yaml:5: 'max_tokens' must be a whole number, not 'many'",)),
    "an unparsable template": (
        GOOD.replace("'{{ review }}'", "'{{#if review}} no end'"),
        ("a.yaml:4: 'template[0].content': template does not parse", "close every"),
    ),
    "an unparsable template in a block of text": (
        "assistant: demo/p/a\ninstructions: |\n  One.\n  {{ two\n",
        ("a.yaml:2: 'instructions': template does not parse",),
    ),
}


Arguments = Callable[[Installation], tuple[object, ...]]
OPTIONS: dict[str, tuple[Arguments, tuple[str, ...]]] = {
    "results over the input": (lambda shell: ("--out", shell.reviews(2)), ("would overwrite the input",)),
    "results in no directory": (lambda _: ("--out", "no/out.csv"), ("there is no directory no; create it",)),
    "results in no known format": (lambda _: ("--out", "out.txt"), ("name it .csv, .jsonl or .parquet",)),
    "a webhook that is no URL": (lambda _: ("--webhook", "example.com/hook"), ("'example.com/hook' is no address",)),
    "an expected column that is none": (lambda _: ("--expect", "gold"), ("--expect gold: no such column",)),
    "an assistant that is not stored": (lambda _: ("--assistant", "a/b/c"), ("a/b/c has no environment 'production'",)),
    "an assistant that is no name": (lambda _: ("--assistant", "x" * 5000), ("neither a YAML file nor an address",)),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], Ended]]:
    """How each case ended, by its table and name; they run side by side, since each takes a second to load."""
    with LoopbackProvider() as provider, ThreadPoolExecutor(os.cpu_count()) as pool:

        def installation() -> Installation:
            return Installation(tmp_path_factory.mktemp("refused"), ASSISTQ_PROVIDER_BASE_URL=provider.base_url)

        def file(case: str) -> Ended:
            name, content, _ = FILES[case]
            with installation() as shell:
                if content is not None:
                    shell.file(name, content)
                return ended(shell, name, "--assistant", shell.sentiment())

        def assistant(case: str) -> Ended:
            content, _ = ASSISTANTS[case]
            with installation() as shell:
                if content is not None:
                    shell.file("a.yaml", content)
                return ended(shell, shell.reviews(2), "--assistant", "a.yaml")

        def option(case: str) -> Ended:
            arguments, _ = OPTIONS[case]
            with installation() as shell:
                return ended(shell, shell.reviews(2), "--assistant", shell.sentiment(), *arguments(shell))

        def ended(shell: Installation, *arguments: object) -> Ended:
            ended = shell.run("run", *arguments)
            assert not (shell.data_dir / "valkey").exists(), "a queue was started"
            assert not list(shell.directory.glob("*results*"))
            return ended

        runs = {("file", case): pool.submit(file, case) for case in FILES}
        runs |= {("assistant", case): pool.submit(assistant, case) for case in ASSISTANTS}
        runs |= {("option", case): pool.submit(option, case) for case in OPTIONS}
        yield lambda table, case: runs[table, case].result()
        for run in runs.values():
            run.cancel()
        assert provider.count == 0


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_run_is_refused_before_anything_is_enqueued(
    refused: Callable[[str, str], Ended], case: str
) -> None:
    refused("file", case).refused(*FILES[case][2])


@pytest.mark.parametrize("case", ASSISTANTS)
def test_an_assistant_file_that_is_none_is_refused_with_its_line(
    refused: Callable[[str, str], Ended], case: str
) -> None:
    refused("assistant", case).refused(*ASSISTANTS[case][1])


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_that_cannot_be_met_is_refused_before_anything_is_paid_for(
    refused: Callable[[str, str], Ended], case: str
) -> None:
    refused("option", case).refused(*OPTIONS[case][1])


def test_nothing_is_said_to_be_there_after_a_refusal_and_submit_refuses_the_same(shell: Installation) -> None:
    file = shell.file("f.csv", "custom_id,review\na,one\na,two\n")
    for command in ("run", "submit"):
        ended = shell.run(command, file, "--assistant", shell.sentiment())
        ended.refused("f.csv:3, column 'custom_id'", "nothing was enqueued", "--skip-bad-rows to run the other 1 row")
    assert shell.run("status", "--json").json == []


def test_skipped_rows_are_in_the_results_with_their_error(shell: Installation, provider: LoopbackProvider) -> None:
    lines = [
        HEADER,
        "a,a good one,\n",
        "b,a bad one\n",
        "a,another,\n",
        'c,a good two,"{"\n',
        f"d,{'x' * 2_000_000},\n",
        "e,a bad end,\n",
    ]
    file = shell.file("f.csv", "".join(lines))
    ended = shell.run("run", file, "--assistant", shell.sentiment(), "--skip-bad-rows")
    assert ended.code == 3, ended.err
    results = shell.results("f-results.csv")
    assert [result["custom_id"] for result in results] == ["a", "b", "a", "c", "", "e"]
    assert [result["status"] for result in results] == ["succeeded", *["failed"] * 4, "succeeded"]
    assert [result["error_code"] for result in results] == ["", *["bad_row"] * 4, ""]
    errors = [result["error"] for result in results]
    assert "f.csv:3, column 'metadata': 2 fields" in errors[1]
    assert "f.csv:4, column 'custom_id': 'a' stands in line 2 too" in errors[2]
    assert "f.csv:5, column 'metadata': not valid JSON" in errors[3]
    assert "f.csv:6, column 'review': the field is larger" in errors[4]
    assert [result["output"] for result in results] == ["positive", "", "", "", "", "negative"]
    assert provider.count == 2
    assert ended.err.count("skipped: ") == 4


def test_a_file_whose_rows_are_all_bad_is_refused_even_if_they_may_be_skipped(shell: Installation) -> None:
    file = shell.file("f.csv", "custom_id,review\na\nb\n")
    ended = shell.run("run", file, "--assistant", shell.sentiment(), "--skip-bad-rows")
    ended.refused("f.csv:2", "f.csv:3", "nothing was enqueued; mend the file")


@pytest.mark.parametrize(
    "name", ["ASSISTQ_RPM", "ASSISTQ_PROVIDER_BASE_URL", "ASSISTQ_DATABASE_URL", "ASSISTQ_REDIS_URL"]
)
def test_a_wrong_setting_is_one_line_that_names_it(shell: Installation, name: str) -> None:
    ended = shell.run("run", shell.reviews(2), "--assistant", shell.sentiment(), env={name: "nonsense"})
    ended.refused(name)
    assert len(ended.err.splitlines()) <= 2


def test_a_data_directory_that_cannot_be_made_is_one_line(shell: Installation) -> None:
    blocked = shell.file("blocked", "a file")
    ended = shell.run("status", env={"ASSISTQ_DATA_DIR": str(blocked / "data")})
    ended.refused(str(blocked))


@pytest.mark.parametrize("name", [None, "limits.yaml"], ids=["found", "named"])
def test_a_wrong_lanes_file_is_one_line_and_nothing_is_started(
    shell: Installation, provider: LoopbackProvider, name: str | None
) -> None:
    file = shell.file(name or "assistq.lanes.yaml", "lanes:\n  - {model: m1, rpm: 3}\n  - {model: m2, rpm: 0}\n")
    env = {"ASSISTQ_LANES": name} if name else {}
    worker = [sys.executable, "-m", "worker"]
    for ended in (
        shell.run("up", env=env),
        shell.run("run", shell.reviews(2), "--assistant", shell.sentiment(), env=env),
        Running(worker, env={**shell.env, **env}, cwd=shell.directory).ended(),
    ):
        assert ended.code == 1
        assert ended.out == ""
        (line,) = ended.err.splitlines()
        wrong = "'lanes[1].rpm' should be greater than or equal to 1, not 0; set 'lanes[1].rpm' to such a value"
        assert line.endswith(f"{file}:3: {wrong}")
    assert not (shell.data_dir / "valkey").exists()
    assert provider.count == 0


def test_a_lanes_file_that_is_right_stops_nobody(shell: Installation, provider: LoopbackProvider) -> None:
    shell.file(
        "assistq.lanes.yaml", "lanes:\n  - {model: 'm*', rpm: 60000, tpm: 1000000}\nworkspaces: {demo: {weight: 2}}\n"
    )
    ended = shell.run("run", shell.reviews(2), "--assistant", shell.sentiment())
    assert ended.code == 0, ended.err
