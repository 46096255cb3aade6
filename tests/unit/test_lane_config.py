"""Each lane has the limits of the entry that is most about it; a wrong file is refused by line, with the mend."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent

import pytest

from schemas import InputError, Settings
from schemas.lane import Lane
from schemas.lane_config import DEFAULT_LANES_FILE, LaneConfig
from schemas.lane_limits import LaneLimits
from schemas.money import NANOS
from schemas.prices import Price

MINI = Lane("acme", "api.openai.com", "gpt-4o-mini")

Load = Callable[[str], LaneConfig]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a file of this text."""

    def load(text: str) -> LaneConfig:
        path = tmp_path / "lanes.yaml"
        path.write_text(dedent(text), "utf-8")
        monkeypatch.setenv("ASSISTQ_LANES", str(path))
        return LaneConfig.load(Settings.from_env())

    return load


@pytest.fixture
def refusal(load: Load, tmp_path: Path) -> Callable[[str], str]:
    """Returns what is said of a wrong file, without its path."""

    def refusal(text: str) -> str:
        with pytest.raises(InputError) as caught:
            load(text)
        assert all(line.startswith(f"{tmp_path / 'lanes.yaml'}") for line in str(caught.value).splitlines())
        return str(caught.value).replace(f"{tmp_path / 'lanes.yaml'}:", "")

    return refusal


class TestLimits:
    def test_all_of_an_entry_is_read(self, load: Load) -> None:
        config = load("""\
            lanes:
              - {workspace: acme, provider: api.openai.com, model: gpt-4o-mini, rpm: 3000, tpm: 360000,
                 shape: bucket, burst_s: 2, max_concurrency: 64, headroom: 0.05}
        """)
        assert config.limits_of(MINI) == LaneLimits(
            rpm=3000, tpm=360_000, shape="bucket", burst_s=2, max_concurrency=64, headroom=0.05
        )

    def test_what_an_entry_leaves_unset_comes_from_the_environment(
        self, load: Load, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ASSISTQ_TPM", "7000")
        monkeypatch.setenv("ASSISTQ_SHAPE", "window")
        monkeypatch.setenv("ASSISTQ_MAX_CONCURRENCY", "9")
        config = load("lanes: [{model: gpt-4o-mini, rpm: 3}, {model: free, max_concurrency: null}]")
        assert config.limits_of(MINI) == LaneLimits(rpm=3, tpm=7000, shape="window", max_concurrency=9)
        assert config.limits_of(Lane("acme", "p", "free")).max_concurrency is None

    def test_a_lane_that_no_entry_is_for_has_the_defaults(self, load: Load) -> None:
        config = load("lanes: [{workspace: other, rpm: 3}, {provider: other, rpm: 4}, {model: other, rpm: 5}]")
        assert config.limits_of(MINI) == LaneLimits()

    @pytest.mark.parametrize(
        "entry",
        [
            "{rpm: 3}",
            "{model: 'gpt-4o*', rpm: 3}",
            "{model: 'gpt-?o-min[ij]', rpm: 3}",
            "{provider: '*.openai.com', rpm: 3}",
            "{provider: API.OpenAI.com, rpm: 3}",
            "{workspace: 'a*', provider: '*', model: '*mini', rpm: 3}",
        ],
    )
    def test_wildcards_match_as_in_file_names(self, load: Load, entry: str) -> None:
        assert load(f"lanes: [{entry}]").limits_of(MINI).rpm == 3

    @pytest.mark.parametrize("entry", ["{model: gpt-4o, rpm: 3}", "{model: GPT-4O-MINI, rpm: 3}"])
    def test_what_is_named_is_meant_whole_and_in_its_case(self, load: Load, entry: str) -> None:
        assert load(f"lanes: [{entry}]").limits_of(MINI).rpm == 500

    @pytest.mark.parametrize(
        ("lesser", "greater"),
        [
            ("{}", "{model: 'gpt*'}"),
            ("{model: 'gpt*'}", "{model: 'gpt-4o*'}"),
            ("{model: 'gpt-4o-mini*'}", "{model: gpt-4o-mini}"),
            ("{model: gpt-4o-mini}", "{model: gpt-4o-mini, provider: '*openai.com'}"),
            ("{provider: 'api.openai.*', model: 'gpt-4o-min*'}", "{workspace: acme}"),
            ("{model: gpt-4o-mini}", "{workspace: acme, provider: api.openai.com}"),
            ("{workspace: 'acm*', provider: 'api.openai*'}", "{workspace: acme, model: gpt-4o-mini}"),
        ],
    )
    def test_the_most_specific_entry_holds_wherever_it_stands(self, load: Load, lesser: str, greater: str) -> None:
        few, many = lesser[:-1] + ", rpm: 1}", greater[:-1] + ", rpm: 2}"
        few = few.replace("{, ", "{")
        assert load(f"lanes: [{few}, {many}]").limits_of(MINI).rpm == 2
        assert load(f"lanes: [{many}, {few}]").limits_of(MINI).rpm == 2

    def test_among_equals_the_workspace_is_more_than_the_provider_and_that_more_than_the_model(
        self, load: Load
    ) -> None:
        lane = Lane("same", "same", "same")
        entries = ["{workspace: same, rpm: 1}", "{provider: same, rpm: 2}", "{model: same, rpm: 3}"]
        assert load(f"lanes: [{', '.join(entries[::-1])}]").limits_of(lane).rpm == 1
        assert load(f"lanes: [{', '.join(entries[:0:-1])}]").limits_of(lane).rpm == 2

    def test_of_two_patterns_that_say_as_much_the_first_holds(self, load: Load) -> None:
        assert load("lanes: [{model: 'gpt-4*', rpm: 1}, {model: '*-mini', rpm: 2}]").limits_of(MINI).rpm == 1

    def test_the_entry_that_holds_takes_nothing_from_the_others(self, load: Load) -> None:
        config = load("lanes: [{model: 'gpt*', rpm: 1, tpm: 1}, {model: gpt-4o-mini, rpm: 2}]")
        assert config.limits_of(MINI) == LaneLimits(rpm=2)

    def test_ten_thousand_lanes_are_no_matter(self, load: Load) -> None:
        config = load("lanes: [{model: 'm1*', rpm: 1}]")
        for _ in range(2):
            assert sum(config.limits_of(Lane("acme", "p", f"m{number}")).rpm == 1 for number in range(10_000)) == 1111


class TestWeights:
    def test_a_workspace_weighs_what_its_entry_says_and_one_without(self, load: Load) -> None:
        config = load("workspaces: {acme: {weight: 3}, small: {weight: 0.5}, plain: {}}")
        assert [config.weight_of(name) for name in ("acme", "small", "plain", "other")] == [3.0, 0.5, 1.0, 1.0]


class TestWhere:
    def test_without_a_file_there_are_the_defaults(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        config = LaneConfig.load(Settings.from_env())
        assert (config.file, config.limits_of(MINI), config.weight_of("acme")) == (None, LaneLimits(), 1.0)

    def test_one_in_the_working_directory_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / DEFAULT_LANES_FILE).write_text("lanes: [{rpm: 3}]")
        config = LaneConfig.load(Settings.from_env())
        assert (config.file, config.limits_of(MINI).rpm) == (tmp_path / DEFAULT_LANES_FILE, 3)

    def test_the_one_that_is_named_is_read_instead(
        self, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / DEFAULT_LANES_FILE).write_text("lanes: [{rpm: 3}]")
        assert load("lanes: [{rpm: 4}]").limits_of(MINI).rpm == 4

    def test_one_that_is_named_must_be_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ASSISTQ_LANES", str(tmp_path / "none.yaml"))
        with pytest.raises(InputError) as caught:
            LaneConfig.load(Settings.from_env())
        assert str(caught.value) == f"{tmp_path / 'none.yaml'}: no such file; check ASSISTQ_LANES, or unset it"

    def test_a_directory_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ASSISTQ_LANES", str(tmp_path))
        with pytest.raises(InputError, match="is a directory; let ASSISTQ_LANES name the YAML file in it"):
            LaneConfig.load(Settings.from_env())


class TestWrongFiles:
    @pytest.mark.parametrize(
        ("entry", "said"),
        [
            (
                "rpm: 0",
                "'lanes[1].rpm' should be greater than or equal to 1, not 0; set 'lanes[1].rpm' to such a value",
            ),
            ("tpm: -5", "'lanes[1].tpm' should be greater than or equal to 1, not -5"),
            ("rpm: 1.5", "'lanes[1].rpm' must be a whole number, not 1.5; write a number, without quotes or units"),
            ("rpm: '500'", "'lanes[1].rpm' must be a whole number, not '500'; write a number, without quotes"),
            ("rpm: yes", "'lanes[1].rpm' must be a whole number, not true"),
            ("rpm:", "'lanes[1].rpm' must be a whole number, not empty"),
            ("burst_s: 0", "'lanes[1].burst_s' should be greater than 0"),
            ("burst_s: 61", "'lanes[1].burst_s' should be less than or equal to 60"),
            ("burst_s: .nan", "'lanes[1].burst_s' should"),
            ("shape: round", "'lanes[1].shape' should be 'smooth', 'bucket' or 'window', not 'round'"),
            ("max_concurrency: 0", "'lanes[1].max_concurrency' should be greater than or equal to 1"),
            ("headroom: 1", "'lanes[1].headroom' should be less than 1"),
            ("headroom: -0.1", "'lanes[1].headroom' should be greater than or equal to 0"),
            ("headrom: 0.1", "unknown key 'lanes[1].headrom'; did you mean 'headroom'?"),
            ("colour: red", "unknown key 'lanes[1].colour'; remove it, or use one of rpm, tpm"),
            ("model: 4", "'lanes[1].model' must be text, not 4; put it in quotes"),
            ("model: ''", "'lanes[1].model' should have at least 1 character"),
            ("workspace: acme/reviews", "'lanes[1].workspace': no workspace is called so"),
            ("provider: https://api.openai.com/v1", "'lanes[1].provider': a provider is named by its host, such as"),
            ("provider: localhost:8000", "'lanes[1].provider': a provider is named by its host"),
        ],
    )
    def test_a_wrong_value_is_named_by_line_with_its_mend(
        self, refusal: Callable[[str], str], entry: str, said: str
    ) -> None:
        text = f"lanes:\n  - rpm: 5\n  - model: m\n    {entry}\n"
        if entry.startswith("model"):
            text = f"lanes:\n  - rpm: 5\n  -\n    {entry}\n"
        told = refusal(text)
        assert told.startswith(f"4: {said}")
        assert len(told.splitlines()) == 1
        assert "; " in told

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("lane: []\n", "1: unknown key 'lane'; did you mean 'lanes'?"),
            ("lanes:\n", "1: 'lanes' must be a list, not empty"),
            ("lanes: {rpm: 3}\n", "1: 'lanes' must be a list, not a mapping"),
            ("lanes: [3]\n", "1: 'lanes[0]' must be a mapping, not 3"),
            ("workspaces: [acme]\n", "1: 'workspaces' must be a mapping, not a list"),
            ("workspaces:\n  a b: {weight: 1}\n", "2: 'a b' is no workspace; name the first part of"),
            ("workspaces:\n  acme: {weight: 0}\n", "2: 'workspaces.acme.weight' should be greater than 0, not 0"),
            ("workspaces:\n  acme: {weight: -1}\n", "2: 'workspaces.acme.weight' should be greater than 0"),
            ("workspaces:\n  acme: {weight: .inf}\n", "2: 'workspaces.acme.weight' should be"),
            (
                "workspaces:\n  acme: {wait: 1}\n",
                "2: unknown key 'workspaces.acme.wait'; did you mean 'weight'?",
            ),
            ("workspaces:\n  acme: {}\n  acme: {}\n", "3: key 'acme' stands here and in line 2; keep one of the two"),
            (
                "lanes:\n- {model: m, rpm: 1}\n- {rpm: 2}\n- {workspace: '*', model: m}\n",
                "4: 'lanes[2]' is for the same lanes",
            ),
            (
                "- rpm: 3\n",
                "1: a lanes file is a mapping, `key: value` lines; begin with `lanes:`, `prices:` or `workspaces:`",
            ),
            ("lanes: [}\n", "1: not valid YAML"),
        ],
    )
    def test_a_wrong_form_is_named_by_line_with_its_mend(
        self, refusal: Callable[[str], str], text: str, said: str
    ) -> None:
        told = refusal(text)
        assert told.startswith(said)
        assert len(told.splitlines()) == 1

    def test_an_empty_one_is_refused(self, refusal: Callable[[str], str]) -> None:
        assert refusal("# nothing yet\n").endswith(
            "is empty; write `lanes:`, `prices:` or `workspaces:`, or remove the file"
        )

    def test_every_problem_has_its_line(self, refusal: Callable[[str], str]) -> None:
        told = refusal("lanes:\n- {rpm: 0, tpm: 0}\n- {shape: round}\nworkspaces:\n  acme: {weight: 0}\n")
        assert [line.partition(":")[0] for line in told.splitlines()] == ["2", "2", "3", "5"]


class TestPrices:
    def test_the_most_specific_entry_holds_and_a_lane_without_one_has_no_price(self, load: Load) -> None:
        config = load("""\
            prices:
              - {provider: api.openai.com, prompt: 2, completion: 8.5}
              - {provider: api.openai.com, model: "gpt-4o*", prompt: 0.15, completion: 0.60}
        """)
        assert config.price_of(MINI) == Price(prompt_nano=150_000_000, completion_nano=600_000_000)
        assert config.price_of(Lane("acme", "api.openai.com", "o3")) == Price(2 * NANOS, 8_500_000_000)
        assert config.price_of(Lane("acme", "127.0.0.1", "gpt-4o")) is None

    def test_a_workspace_may_have_a_cap_for_each_day_month_or_at_all(self, load: Load) -> None:
        config = load("""\
            workspaces:
              acme: {weight: 3, spend_cap: 50}
              beta: {spend_cap: 0.5, spend_cap_period: day}
              gamma: {spend_cap: 9, spend_cap_period: total}
        """)
        late = datetime(2026, 11, 30, 23, 59, tzinfo=UTC)
        caps = {name: config.cap_of(name) for name in ("acme", "beta", "gamma", "others")}
        assert {name: (cap.nano, cap.period_at(late)) for name, cap in caps.items()} == {
            "acme": (50 * NANOS, "2026-11"),
            "beta": (NANOS // 2, "2026-11-30"),
            "gamma": (9 * NANOS, "total"),
            "others": (None, "2026-11"),
        }

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            (
                "prices:\n  - {model: m, prompt: 1}\n",
                (
                    "2: 'prices[0]' has no 'completion'; write 'completion:' and what a million tokens cost; "
                    "0 if they cost nothing"
                ),
            ),
            (
                "prices:\n  - {model: m, prompt: -1, completion: 1}\n",
                (
                    "2: 'prices[0].prompt' should be greater than or equal to 0, not -1; "
                    "set 'prices[0].prompt' to such a value"
                ),
            ),
            (
                "prices:\n  - {model: m, prompt: 1, completion: free}\n",
                "2: 'prices[0].completion' must be a number, not 'free'; write a number, without quotes or units",
            ),
            (
                "prices:\n  - {model: m, promt: 1, prompt: 1, completion: 1}\n",
                "2: unknown key 'prices[0].promt'; did you mean 'prompt'?",
            ),
            (
                "prices:\n  - {model: m, prompt: 1, completion: 1}\n  - {model: m, prompt: 2, completion: 1}\n",
                "3: 'prices[1]' is for the same lanes as the entry in line 2; keep one of the two",
            ),
            (
                "workspaces:\n  acme: {spend_cap: 5, spend_cap_period: week}\n",
                (
                    "2: 'workspaces.acme.spend_cap_period' should be 'day', 'month' or 'total', not 'week'; "
                    "set 'workspaces.acme.spend_cap_period' to such a value"
                ),
            ),
        ],
    )
    def test_a_wrong_value_is_refused_by_line(self, refusal: Callable[[str], str], text: str, told: str) -> None:
        assert refusal(text) == told
