"""`assistq run`: a file goes in, a file comes out, and nothing stays behind."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import delete
from sqlmodel import col

from schemas.database import engine_for
from schemas.tables import Batch
from tests.command_line import Installation, asked_rows
from tests.loopback_provider import LoopbackProvider, Reply, answers, default_reply

COLUMNS = [
    "custom_id",
    "job_id",
    "status",
    "output",
    "thread_id",
    "model",
    "prompt_tokens",
    "completion_tokens",
    "attempts",
    "error_code",
    "error",
]


def test_a_csv_becomes_results_in_its_order_once_and_is_run_anew_only_if_asked(
    shell: Installation, provider: LoopbackProvider
) -> None:
    # The first rows are answered last.
    provider.script(lambda body, n: Reply(text=default_reply(body, n).text, delay_s=0.4 if n <= 4 else 0))
    command = ("run", shell.reviews(40), "--assistant", shell.sentiment(), "--expect", "label")
    ended = shell.run(*command)
    assert ended.code == 0, ended.err
    out = shell.directory / "reviews-results.csv"  # beside the input, where --out is not said
    assert out.read_text("utf-8").splitlines()[0].split(",") == COLUMNS
    results = shell.results()
    assert [result["custom_id"] for result in results] == [f"r{number}" for number in range(40)]
    for number, result in enumerate(results):
        assert result["status"] == "succeeded"
        assert result["output"] == ("negative" if number % 3 == 0 else "positive")
        assert (result["model"], result["attempts"], result["error_code"], result["error"]) == ("m1", "1", "", "")
        assert int(result["prompt_tokens"]) > 0
        assert int(result["completion_tokens"]) > 0
        assert result["thread_id"]
    assert len({result["job_id"] for result in results}) == 40
    assert "40 rows: 40 succeeded" in ended.out
    assert "40 requests" in ended.out
    assert "accuracy: 30 of 40 (75%)" in ended.out
    assert provider.count == 40
    shell.nothing_left()

    before = out.read_bytes()
    out.unlink()
    repeated = shell.run(*command, "--json")
    assert repeated.code == 0, repeated.err
    assert out.read_bytes() == before
    assert provider.count == 40
    assert "--again" in repeated.err
    assert repeated.json["counts"] == {"succeeded": 40}
    assert repeated.json["accuracy"] == pytest.approx(0.75)
    assert repeated.json["out"] == str(out)

    provider.script(lambda *_: answers("positive"))
    again = shell.run(*command, "--json", "--again")
    assert again.code == 0, again.err
    assert again.json["batch_id"] != repeated.json["batch_id"]
    assert provider.count == 80
    # What was run last is what stays.
    assert shell.run(*command, "--json").json["batch_id"] == again.json["batch_id"]
    assert [result["output"] for result in shell.results()] == ["positive"] * 40
    assert provider.count == 80

    # As when the first run was pruned.
    engine = engine_for(shell.settings.effective_database_url)
    with engine.begin() as connection:
        connection.execute(delete(Batch).where(col(Batch.id) == repeated.json["batch_id"]))
    engine.dispose()
    third = shell.run(*command, "--json", "--again")
    assert third.code == 0, third.err
    assert third.json["batch_id"] == f"{repeated.json['batch_id']}_3"
    assert provider.count == 120


def test_jsonl_comes_out_with_its_values_as_they_are_and_the_status_tells_of_rows_that_did_not_succeed(
    shell: Installation, provider: LoopbackProvider
) -> None:
    assistant = shell.file(
        "a.yaml",
        "assistant: demo/p/a\nmodel: m1\nmax_repairs: 0\ntemplate:\n- {role: user, content: '{{ q.text }}'}\n"
        "output: {type: object, schema: {type: object, properties: {n: {type: integer, minimum: 7}}, required: [n]}}\n",
    )
    replies = {"q 0": '{"n": 7}', "q 1": "perhaps", "q 2": '{"n": 3}', "q 3": '{"n": 8}'}
    provider.script(lambda body, _: answers(replies[body["messages"][-1]["content"]]))
    rows = [{"custom_id": f"é{number}", "q": {"text": f"q {number}"}, "metadata": {"k": 1}} for number in range(4)]
    file = shell.file("rows [draft] :car:.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    command = ("run", file, "--assistant", assistant, "--out", "out [b].jsonl")
    ended = shell.run(*command, "--json")
    assert ended.code == 3, ended.err
    assert ended.json["counts"] == {"succeeded": 2, "invalid_output": 2}
    lines = (shell.directory / "out [b].jsonl").read_text("utf-8").splitlines()
    results = [json.loads(line) for line in lines]
    assert [list(result) for result in results] == [COLUMNS] * 4
    assert [result["custom_id"] for result in results] == [row["custom_id"] for row in rows]
    assert [result["output"] for result in results] == [{"n": 7}, None, None, {"n": 8}]
    assert [result["error_code"] for result in results] == [None, "output_not_json", "output_not_valid", None]
    assert "not JSON" in results[1]["error"]
    assert "minimum of 7 at /n" in results[2]["error"]
    # Nothing is asked again, and it is still not what was wanted.
    repeated = shell.run(*command)
    assert repeated.code == 3
    assert "results: out [b].jsonl" in repeated.out
    assert provider.count == 4


def test_two_runs_at_once_in_one_data_directory_share_its_queue_and_both_complete(
    shell: Installation, provider: LoopbackProvider
) -> None:
    provider.script(lambda body, n: Reply(text=default_reply(body, n).text, delay_s=0.2))
    assistant = shell.sentiment()
    short = shell.start("run", shell.reviews(20, "short.csv"), "--assistant", assistant)
    provider.wait_for_requests(1)  # the queue is the first one's, which ends first and stops it
    long = shell.start("run", shell.reviews(250, "long.csv"), "--assistant", assistant)
    for running, rows in ((short, 20), (long, 250)):
        ended = running.ended()
        assert ended.code == 0, ended.err
        assert f"{rows} rows: {rows} succeeded" in ended.out
    assert provider.count == 270
    assert len(set(asked_rows(provider))) == 250
    shell.nothing_left()
