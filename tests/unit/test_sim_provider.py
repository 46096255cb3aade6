"""The simulated provider of the benchmarks: its limits' arithmetic and its audit, on a clock that the test moves."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ops.bench import sim_chat
from ops.bench.sim_limits import Quota, Refusal
from ops.bench.sim_provider import Behaviour, Call, SimApp, SimProvider


def about(value: float) -> Any:
    return pytest.approx(value)


class Scene:
    """A provider and its clock."""

    def __init__(self, quota: Quota, behaviour: Behaviour | None = None) -> None:
        self.now_s = 1000.0
        self.provider = SimProvider(quota, behaviour=behaviour, clock=lambda: self.now_s)

    def arrive(self, prompt: int, completion: int = 0, *, said: str = "", **named: Any) -> Call | Refusal:
        """Ask for a completion; both sizes are tokens."""
        asked = sim_chat.Asked(
            named.pop("model", "m"), said, prompt_tokens=prompt, completion_tokens=completion, schema=None
        )
        return self.provider.arrive(asked, **named)

    def admitted(self, prompt: int, completion: int = 0, **named: Any) -> Call:
        arrived = self.arrive(prompt, completion, **named)
        assert isinstance(arrived, Call), arrived
        return arrived

    def refused(self, prompt: int, **named: Any) -> Refusal:
        arrived = self.arrive(prompt, **named)
        assert isinstance(arrived, Refusal), arrived
        return arrived

    def bought(self, prompt: int, completion: int, *, takes_s: float = 0.0, **named: Any) -> None:
        call = self.admitted(prompt, completion, **named)
        self.now_s += takes_s
        self.provider.end(call)

    def audit(self, model: str = "m") -> Any:
        return self.provider.report()["models"][model]


def bucket(*, rpm: int = 600, tpm: int = 6000, capacity_s: float = 10.0) -> Scene:
    """A bucket that by default holds 100 requests and 1,000 tokens, and gets 10 and 100 back a second."""
    return Scene(Quota("bucket", rpm=rpm, tpm=tpm, capacity_s=capacity_s))


def window(*, rpm: int = 10, tpm: int = 1000) -> Scene:
    return Scene(Quota("window", rpm=rpm, tpm=tpm))


class TestBucket:
    def test_holds_its_capacity_of_tokens_and_no_more(self) -> None:
        scene = bucket()
        scene.admitted(900)
        scene.admitted(100)
        assert scene.refused(1) == Refusal("tokens", about(0.01))

    def test_holds_its_capacity_of_requests_and_no_more(self) -> None:
        scene = bucket(rpm=12)
        scene.admitted(1)
        scene.admitted(1)
        assert scene.refused(1) == Refusal("requests", about(5.0))

    def test_who_waits_as_long_as_it_was_told_is_admitted_and_who_waits_less_is_not(self) -> None:
        scene = bucket()
        scene.admitted(1000)
        scene.now_s += 0.7
        wait_s = scene.refused(90).retry_after_s
        assert wait_s == pytest.approx(0.2)
        scene.now_s += 0.19
        scene.refused(90)
        scene.now_s += 0.01
        scene.admitted(90)

    def test_a_refusal_charges_nothing(self) -> None:
        scene = bucket()
        scene.admitted(950)
        scene.refused(100)
        scene.admitted(50)

    def test_fills_no_higher_than_its_capacity(self) -> None:
        scene = bucket()
        scene.admitted(1000)
        scene.now_s += 3600
        scene.admitted(1000)
        scene.refused(1)

    def test_a_completion_is_charged_at_the_end_of_the_call_and_may_overdraw(self) -> None:
        scene = bucket()
        call = scene.admitted(900, 300)
        scene.now_s += 1.0  # 200 are left by then
        scene.provider.end(call)
        assert scene.audit()["overdraft_tokens"] == 100
        assert scene.refused(10) == Refusal("tokens", about(1.1))

    def test_a_prompt_larger_than_the_bucket_is_refused_without_a_time(self) -> None:
        assert bucket().refused(1001) == Refusal("tokens", None)

    def test_a_bucket_smaller_than_one_request_still_admits_one_at_a_time(self) -> None:
        scene = bucket(rpm=30, capacity_s=1.0)
        scene.admitted(1)
        assert scene.refused(1) == Refusal("requests", about(2.0))

    @given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 1000), st.integers(0, 200)), min_size=1, max_size=60))
    def test_never_admits_more_prompt_tokens_than_capacity_and_refill(self, asks: list[tuple[float, int, int]]) -> None:
        scene = bucket()
        began_s, charged = scene.now_s, 0
        for pause_s, prompt, completion in asks:
            scene.now_s += pause_s
            call = scene.arrive(prompt, completion)
            if isinstance(call, Call):
                charged += prompt
                assert charged <= 1000 + (scene.now_s - began_s) * 100 + 0.001
                scene.provider.end(call)
                charged += completion


class TestWindow:
    def test_holds_a_minutes_tokens_and_gives_them_back_after_60_s_exactly(self) -> None:
        scene = window()
        scene.admitted(600)
        scene.now_s += 20
        scene.admitted(400)
        assert scene.refused(500) == Refusal("tokens", about(40.0))
        scene.now_s += 39.9
        scene.refused(1)
        scene.now_s = 1060.0
        scene.admitted(600)
        assert scene.refused(1) == Refusal("tokens", about(20.0))
        assert scene.audit()["largest_minute_tokens"] == 1000

    def test_holds_a_minutes_requests(self) -> None:
        scene = window(rpm=2)
        scene.admitted(1)
        scene.now_s += 15
        scene.admitted(1)
        assert scene.refused(1) == Refusal("requests", about(45.0))

    def test_a_completion_counts_from_the_end_of_its_call_and_may_go_above_the_limit(self) -> None:
        scene = window()
        scene.bought(700, 500, takes_s=10)
        assert scene.audit()["overdraft_tokens"] == 200
        assert scene.audit()["largest_minute_tokens"] == 1200
        # The prompt leaves first, which is room for 500.
        assert scene.refused(500).retry_after_s == pytest.approx(50.0)
        assert scene.refused(501).retry_after_s == pytest.approx(60.0)

    def test_a_prompt_larger_than_a_minute_is_refused_without_a_time(self) -> None:
        assert window().refused(1001) == Refusal("tokens", None)

    @given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 1000)), min_size=1, max_size=60))
    def test_no_60_s_hold_more_than_the_limit(self, asks: list[tuple[float, int]]) -> None:
        scene = window()
        admitted: list[tuple[float, int]] = []
        for pause_s, prompt in asks:
            scene.now_s += pause_s
            if isinstance(scene.arrive(prompt), Call):
                admitted.append((scene.now_s, prompt))
        minutes = [[tokens for at_s, tokens in admitted if first_s <= at_s < first_s + 60] for first_s, _ in admitted]
        assert all(sum(minute) <= 1000 and len(minute) <= 10 for minute in minutes)
        if admitted:
            assert scene.audit()["largest_minute_tokens"] == max(map(sum, minutes))
            assert scene.audit()["largest_minute_requests"] == max(map(len, minutes))


class TestAudit:
    def test_an_unlimited_provider_refuses_nothing_and_audits_all_the_same(self) -> None:
        scene = Scene(Quota("none", rpm=1, tpm=1))
        scene.bought(10**6, 5)
        scene.bought(10**6, 5)
        assert scene.audit()["served"] == 2
        assert scene.audit()["largest_minute_tokens"] == 2 * (10**6 + 5)

    def test_counts_what_was_served_refused_and_charged(self) -> None:
        scene = bucket()
        scene.bought(500, 100)
        scene.refused(1000)
        assert {key: scene.audit()[key] for key in ("arrived", "served", "refused_429")} == {
            "arrived": 2,
            "served": 1,
            "refused_429": 1,
        }
        assert (scene.audit()["prompt_tokens"], scene.audit()["completion_tokens"]) == (500, 100)
        assert scene.audit()["tokens"] == 600

    def test_the_span_is_from_the_first_arrival_refused_or_not_to_the_last_end(self) -> None:
        scene = bucket()
        scene.refused(2000)
        scene.now_s += 2
        long, short = scene.admitted(1), scene.admitted(1)
        scene.now_s += 1
        scene.provider.end(short)
        scene.now_s += 1
        scene.provider.end(long)
        scene.now_s += 1
        scene.refused(2000)
        assert scene.audit()["span_s"] == pytest.approx(4.0)

    def test_the_same_messages_or_the_same_step_sold_twice_are_duplicates(self) -> None:
        scene = bucket()
        scene.bought(1, 1, said="a", step_id="job.0")
        scene.bought(1, 1, said="b", step_id="job.1")
        assert (scene.audit()["duplicate_prompts"], scene.audit()["duplicate_steps"]) == (0, 0)
        scene.bought(1, 1, said="a", step_id="other.0")
        scene.bought(1, 1, said="c", step_id="job.1")
        scene.bought(1, 1, said="d")
        scene.bought(1, 1, said="d")
        assert (scene.audit()["duplicate_prompts"], scene.audit()["duplicate_steps"]) == (2, 1)

    def test_a_refused_request_that_comes_again_is_no_duplicate(self) -> None:
        scene = bucket()
        scene.admitted(1000)
        scene.refused(1, said="a", step_id="job.0")
        scene.now_s += 1
        scene.bought(1, 1, said="a", step_id="job.0")
        assert (scene.audit()["duplicate_prompts"], scene.audit()["duplicate_steps"]) == (0, 0)

    def test_knows_how_many_calls_were_in_flight_at_most(self) -> None:
        scene = bucket()
        calls = [scene.admitted(1) for _ in range(3)]
        for call in calls:
            scene.provider.end(call)
        scene.bought(1, 1)
        assert (scene.audit()["in_flight_peak"], scene.audit()["in_flight"]) == (3, 0)

    def test_each_model_has_limits_and_an_audit_of_its_own(self) -> None:
        scene = bucket()
        scene.admitted(1000, model="a")
        scene.bought(1000, 7, model="b")
        scene.refused(1, model="a")
        assert scene.audit("a")["refused_429"] == 1
        assert (scene.audit("b")["refused_429"], scene.audit("b")["tokens"]) == (0, 1007)

    def test_after_a_reset_limits_are_full_and_calls_from_before_count_nowhere(self) -> None:
        scene = bucket()
        call = scene.admitted(1000, 50)
        scene.provider.reset()
        scene.admitted(1000)
        scene.provider.end(call)
        assert (scene.audit()["served"], scene.audit()["in_flight"]) == (0, 1)

    def test_a_failed_call_sells_nothing_and_a_cut_one_is_sold(self) -> None:
        failing = Scene(Quota("none", rpm=1, tpm=1), Behaviour(error_share=1.0))
        failing.bought(10, 5)
        assert (failing.audit()["served"], failing.audit()["errors_500"], failing.audit()["tokens"]) == (0, 1, 10)
        cutting = Scene(Quota("none", rpm=1, tpm=1), Behaviour(cut_share=1.0))
        cutting.bought(10, 5)
        assert (cutting.audit()["served"], cutting.audit()["cut"], cutting.audit()["tokens"]) == (1, 1, 15)


class TestBehaviour:
    def test_the_same_seed_makes_the_same_faults_and_latencies_in_the_wanted_shares(self) -> None:
        behaviour = Behaviour(latency_s=1.0, latency_sigma=0.5, error_share=0.2, cut_share=0.1, slow_share=0.1)
        runs = []
        for _ in range(2):
            scene = Scene(Quota("none", rpm=1, tpm=1), behaviour)
            runs.append([(call.fate, call.takes_s) for call in (scene.admitted(1) for _ in range(2000))])
        assert runs[0] == runs[1]
        fates = [fate for fate, _ in runs[0]]
        assert fates.count("error") / 2000 == pytest.approx(0.2, abs=0.04)
        assert fates.count("cut") / 2000 == pytest.approx(0.1, abs=0.03)
        assert sum(takes_s > 30 for _, takes_s in runs[0]) / 2000 == pytest.approx(0.1, abs=0.03)

    def test_without_variation_every_call_takes_the_same_time(self) -> None:
        scene = Scene(Quota("none", rpm=1, tpm=1), Behaviour(latency_s=0.5))
        assert {scene.admitted(1).takes_s for _ in range(9)} == {0.5}


class TestIdeal:
    """The spans of FACTS: 1,500 requests of 238,121 tokens, each call 0.5 s long."""

    @pytest.mark.parametrize(
        ("quota", "burst", "span_s"),
        [
            (Quota("bucket", rpm=3000, tpm=360_000, capacity_s=1.0), True, 39.2),
            (Quota("bucket", rpm=2000, tpm=160_000, capacity_s=60.0), True, 29.8),
            (Quota("bucket", rpm=2000, tpm=160_000, capacity_s=60.0), False, 89.8),
            (Quota("window", rpm=1200, tpm=160_000), True, 60.5),
            (Quota("window", rpm=1200, tpm=160_000), False, 89.8),
            (Quota("bucket", rpm=500, tpm=10**6, capacity_s=60.0), False, 180.5),
            (Quota("window", rpm=1500, tpm=238_121), True, 0.5),
        ],
    )
    def test_is_what_the_tighter_limit_allows(self, quota: Quota, burst: bool, span_s: float) -> None:
        ideal_s = quota.ideal_span_s(requests=1500, tokens=238_121, latency_s=0.5, burst=burst)
        assert ideal_s == pytest.approx(span_s, abs=0.05)

    @pytest.mark.parametrize("limits", [{"rpm": 0}, {"tpm": 0}, {"rpm": -1}, {"capacity_s": 0.0}])
    def test_limits_that_admit_nothing_are_refused(self, limits: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="above 0"):
            Quota("bucket", **{"rpm": 1, "tpm": 1, **limits})


class TestOverHttp:
    """The application, called as its server calls it."""

    @staticmethod
    async def post(app: SimApp, body: Any, **headers: str) -> tuple[int, dict[str, str], Any]:
        return await TestOverHttp.call(app, "POST", "/v1/chat/completions", json.dumps(body).encode(), **headers)

    @staticmethod
    async def call(
        app: SimApp, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        sent: list[Any] = []
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await app({"type": "http", "method": method, "path": path, "headers": raw}, receive, send)
        told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        cut = sent[1]["more_body"]
        return sent[0]["status"], told, sent[1]["body"] if cut else json.loads(sent[1]["body"])

    @staticmethod
    def chat(content: str, **fields: Any) -> dict[str, Any]:
        return {"model": "m", "messages": [{"role": "user", "content": content}], **fields}

    @pytest.mark.anyio
    async def test_a_completion_costs_what_its_usage_says_and_what_the_audit_counts(self) -> None:
        scene = Scene(Quota("none", rpm=1, tpm=1))
        status, _, reply = await self.post(SimApp(scene.provider), self.chat("x" * 200))
        assert status == 200
        assert reply["usage"]["prompt_tokens"] == 54
        assert 20 <= reply["usage"]["completion_tokens"] <= 180
        assert len(reply["choices"][0]["message"]["content"]) == 4 * reply["usage"]["completion_tokens"]
        assert scene.audit()["tokens"] == reply["usage"]["total_tokens"]

    @pytest.mark.anyio
    async def test_a_completion_is_never_longer_than_max_tokens(self) -> None:
        scene = Scene(Quota("none", rpm=1, tpm=1))
        _, _, reply = await self.post(SimApp(scene.provider), self.chat("x", max_tokens=3))
        assert reply["usage"]["completion_tokens"] == 3

    @pytest.mark.anyio
    async def test_a_429_says_how_long_to_wait(self) -> None:
        scene = bucket(rpm=6, capacity_s=10)
        app = SimApp(scene.provider, rate_headers=True)
        await self.post(app, self.chat("x"))
        scene.now_s += 1.5
        status, headers, reply = await self.post(app, self.chat("y"))
        assert (status, reply["error"]["code"]) == (429, "rate_limit_exceeded")
        assert (headers["retry-after"], headers["retry-after-ms"]) == ("9", "8500")
        assert headers["x-ratelimit-remaining-requests"] == "0"
        assert headers["x-ratelimit-reset-requests"] == "8.5s"

    @pytest.mark.anyio
    async def test_an_enum_is_answered_with_one_of_its_values(self) -> None:
        schema = {
            "type": "object",
            "properties": {"result": {"type": "string", "enum": ["good", "bad"]}},
            "required": ["result"],
        }
        form = {"type": "json_schema", "json_schema": {"name": "r", "schema": schema}}
        scene = Scene(Quota("none", rpm=1, tpm=1))
        app = SimApp(scene.provider)
        found = set()
        for number in range(40):
            _, _, reply = await self.post(app, self.chat(f"row {number}", response_format=form))
            found.add(json.loads(reply["choices"][0]["message"]["content"])["result"])
        assert found == {"good", "bad"}

    @pytest.mark.anyio
    async def test_the_idempotency_key_names_the_step(self) -> None:
        scene = Scene(Quota("none", rpm=1, tpm=1))
        app = SimApp(scene.provider)
        await self.post(app, self.chat("a"), idempotency_key="job.0")
        await self.post(app, self.chat("b"), idempotency_key="job.0")
        assert (scene.audit()["duplicate_steps"], scene.audit()["duplicate_prompts"]) == (1, 0)

    @pytest.mark.anyio
    async def test_a_cut_reply_announces_more_than_it_sends(self) -> None:
        scene = Scene(Quota("none", rpm=1, tpm=1), Behaviour(cut_share=1.0))
        status, headers, sent = await self.post(SimApp(scene.provider), self.chat("a"))
        assert status == 200
        assert len(sent) < int(headers["content-length"])

    @pytest.mark.anyio
    @pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model": "m"}', b'{"model": "m", "messages": []}'])
    async def test_what_is_no_request_is_a_400_and_charges_nothing(self, body: bytes) -> None:
        scene = bucket()
        status, _, _ = await self.call(SimApp(scene.provider), "POST", "/v1/chat/completions", body)
        assert status == 400
        assert scene.provider.report()["models"] == {}

    @pytest.mark.anyio
    async def test_the_audit_is_served_and_reset(self) -> None:
        scene = bucket()
        app = SimApp(scene.provider)
        await self.post(app, self.chat("a"))
        _, _, report = await self.call(app, "GET", "/audit")
        assert report["models"]["m"]["served"] == 1
        await self.call(app, "POST", "/reset")
        assert (await self.call(app, "GET", "/audit"))[2]["models"] == {}
