"""Templates answer as Handlebars.js and date-fns do, set up by CONTRACT.md 1.5.

The expected values are their own: ops/template-fixtures/make.mjs ran them.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.template import MissingVariableError, TemplateError, check, render

FIXTURES = json.loads((Path(__file__).parents[1] / "fixtures" / "templates.json").read_text(encoding="utf-8"))
NOW = datetime.fromisoformat(FIXTURES["now"])
CASES = FIXTURES["cases"]


def named(cases: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in cases]


def rendered(case: dict[str, Any], *, strict: bool) -> str:
    return render(case["template"], case["variables"], strict=strict, now=NOW)


class TestAsHandlebarsJs:
    @pytest.mark.parametrize("case", named([case for case in CASES if "expected" in case and "differs" not in case]))
    def test_renders_as_handlebars_js(self, case):
        assert rendered(case, strict=case["strict"]) == case["expected"]

    @pytest.mark.parametrize("case", named([case for case in CASES if case.get("fails") and "differs" not in case]))
    def test_strictly_an_error_where_handlebars_js_throws(self, case):
        with pytest.raises(TemplateError):
            rendered(case, strict=True)

    @pytest.mark.parametrize("case", named([case for case in CASES if "missing" in case]))
    def test_strictly_a_missing_variable_where_handlebars_js_misses_it(self, case):
        with pytest.raises(MissingVariableError) as caught:
            rendered(case, strict=True)
        assert caught.value.path.split(".")[-1] == case["missing"]

    @pytest.mark.parametrize("case", named([case for case in CASES if not case.get("fails") and "differs" not in case]))
    def test_what_handlebars_js_parses_passes_the_check(self, case):
        check(case["template"])


class TestOtherwiseThanHandlebarsJs:
    """Differences that we know and keep; each says why."""

    @pytest.mark.parametrize("case", named([case for case in CASES if "differs" in case]))
    def test_differs(self, case):
        differs = case["differs"]
        assert differs["because"]
        if differs.get("fails"):
            assert rendered(case, strict=False) == case["template"] != case["expected"]
            with pytest.raises(TemplateError):
                rendered(case, strict=True)
        else:
            assert rendered(case, strict=False) == differs["expected"] != case["expected"]

    def test_a_null_date_is_no_date(self):
        assert render('[{{$date d "yyyy"}}]', {"d": None}, strict=True) == "[]"

    def test_the_variables_as_a_whole_are_no_object_to_print(self):
        assert render("{{this}}", {"a": 1}, strict=True) == "[object Object]"


class TestContract:
    """The sentences of CONTRACT.md 1.5 themselves."""

    def test_a_missing_variable_is_empty(self):
        assert render("Hello, {{x}}!", {}, strict=False) == "Hello, !"

    def test_a_parse_error_sends_the_original_text(self):
        assert render("Hello, {{firstName\n", {"firstName": "A"}, strict=False) == "Hello, {{firstName\n"

    def test_today_is_written_in_full(self):
        assert render("{{$date}}", {}, strict=True, now=datetime(2024, 9, 1, tzinfo=UTC)) == "September 01, 2024"

    def test_a_date_with_a_pattern(self):
        assert render('{{$date "2024-09-01" "MM"}}', {}, strict=True) == "09"

    def test_the_year_of_today(self):
        assert render('{{$date "yyyy"}}', {}, strict=True) == str(datetime.now(UTC).year)

    def test_a_bad_date_is_empty(self):
        assert render('{{$date "someday" "MM"}}', {}, strict=True) == ""

    def test_an_object_prints_as_json(self):
        assert render("{{o}}", {"o": '{"a": [1]}'}, strict=True) == '{\n  "a": [\n    1\n  ]\n}'

    def test_an_array_prints_as_its_items(self):
        assert render("{{l}}", {"l": '["a", "b"]'}, strict=True) == "a,b"

    def test_false_in_a_text_is_true(self):
        assert render("{{#if a}}yes{{/if}}", {"a": "false"}, strict=True) == "yes"

    def test_messages_are_joined_by_a_blank_line(self):
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
        assert render("{{formatMessages m}}", {"m": messages}, strict=True) == "[user] Hi\n\n[assistant] Ho"


class TestStrict:
    @pytest.mark.parametrize(
        ("template", "path"),
        [
            ("{{name}}", "name"),
            ("{{user.name}}", "user.name"),
            ("{{#each people}}{{this.age}}{{/each}}", "this.age"),
            ("{{toJSON order}}", "order"),
            ("{{formatMessages chat}}", "chat"),
            ('{{$date day "MM"}}', "day"),
            ("{{last orders}}", "orders"),
            ("{{name.length}}", "name"),
            ("{{[first name]}}", "[first name]"),
        ],
    )
    def test_a_printed_variable_that_is_missing_is_named(self, template, path):
        with pytest.raises(MissingVariableError) as caught:
            render(template, {"people": [{"name": "Ada"}], "user": {}}, strict=True)
        assert caught.value.path == path

    @pytest.mark.parametrize(
        "template",
        [
            "{{#if x}}{{x}}{{/if}}",
            "{{#if x.y}}{{else if (and y (gt z 1))}}{{/if}}",
            '{{#if (eq (last x) "a")}}{{/if}}',
            "{{#each x}}{{y}}{{/each}}",
        ],
    )
    def test_a_condition_may_be_missing(self, template):
        assert render(template, {}, strict=True) == ""

    def test_what_an_object_has_not_is_missing_in_a_json_text_too(self):
        with pytest.raises(MissingVariableError, match=r"variable 'o\.b' is missing"):
            render("{{o.b}}", {"o": '{"a": 1}'}, strict=True)


class TestFaults:
    @pytest.mark.parametrize(
        ("template", "fault"),
        [
            ("a\n{{ b", "unclosed tag"),
            ("{{#if a}}", "unclosed block"),
            ("a\n{{#if b}}\n{{/each}}", "line 3: {{/each}} stands where {{/if}} should close the block of line 2"),
            ("{{/if}}", "line 1: {{/if}} closes a block that was never opened"),
            ("a\n{{else}}", "line 2: {{else}} has no block that it could belong to"),
            ('{"n": {{n}}}', "line 1: {{n}}} has a brace too many; put a blank before the last '}'"),
            ("{{l.0}}", "line 1: {{l.0}} has 'l.0'; an index is written in brackets: .[0]"),
            ("{{eq (a b}}", "line 1: {{eq (a b}} has a '(' that is not closed"),
            ("{{eq a)}}", "line 1: {{eq a)}} has a ')' too many"),
            ("{{> other}}", "line 1: {{> other}} is a partial or a decorator, and there are none"),
            ("{{{{raw}}}}", "line 1: there are no raw blocks; write \\{{ to print braces"),
            ("{{}}", "line 1: {{}} names nothing"),
        ],
    )
    def test_says_what_is_wrong_and_where(self, template, fault):
        with pytest.raises(TemplateError) as caught:
            check(template)
        assert str(caught.value) == f"template does not parse: {fault}"

    def test_a_fault_in_a_branch_that_is_never_taken_is_found(self):
        with pytest.raises(TemplateError, match="cannot be read"):
            check("{{#if a}}{{b %}}{{/if}}")

    def test_blocks_without_end_are_an_error(self):
        deep = "{{#if a}}" * 2000 + "{{/if}}" * 2000
        with pytest.raises(TemplateError):
            check(deep)
        assert render(deep, {"a": 1}, strict=False) == deep

    def test_json_that_is_too_deep_stays_a_text(self):
        deep = "[" * 100_000
        assert render("{{a}}", {"a": deep}, strict=True) == deep


class TestDates:
    def test_times_are_those_of_the_zone_of_now(self):
        now = datetime(2024, 2, 29, 23, 30, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))
        template = (
            '{{$date "HH:mm X xx xxx O zzzz"}} {{$date "2024-09-01T00:00:00Z" "d. HH:mm"}} {{$date "2024-09-01" "d."}}'
        )
        assert render(template, {}, strict=True, now=now) == (
            "23:30 -0330 -0330 -03:30 GMT-3:30 GMT-03:30 31. 20:30 1."
        )

    def test_a_date_at_the_beginning_of_time(self):
        assert render('[{{$date "0001-01-01" "yyyy w"}}]', {}, strict=True) == "[]"

    def test_a_present_without_zone_is_utc(self):
        assert render('{{$date "HH X"}}', {}, strict=True, now=datetime(2024, 1, 1, 5)) == "05 Z"  # noqa: DTZ001


WORDS = [
    "{{",
    "}}",
    "{",
    "}",
    "#if ",
    "/if",
    "else",
    "#each ",
    "/each",
    "^",
    "~",
    "a",
    "l",
    ".",
    "..",
    "/",
    "this",
    "@index",
    "(eq ",
    ")",
    '"',
    "'",
    " ",
    "\n",
    "\\",
    "!",
    "!--",
    "--",
    ">",
    "&",
    "|",
    " as |x|",
    "=",
    "$date",
    "toJSON",
    "0",
    "[",
    "]",
    "last ",
]
SOURCES = st.one_of(
    st.text(),
    st.lists(st.sampled_from([*WORDS, "{{#if a}}", "{{/if}}", "{{else}}", "{{#each l}}", "{{/each}}", "{{a}}"])).map(
        "".join
    ),
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(['{"x": [1]}', "[1, 2]", "{{a}}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["a", "l", "x", "last", "$date"])


class TestAnyTemplate:
    @given(value=st.text())
    @example(value="{{b}}")
    @example(value="{{#if b}}{{/if}}\\{{b}}")
    def test_a_value_is_never_rendered(self, value):
        printed = render(
            "<{{a}}>{{#each l}}{{this}}{{/each}}", {"a": f"-{value}", "l": [value], "b": "RENDERED"}, strict=True
        )
        assert printed == f"<-{value}>{value}".removesuffix("\n")

    @given(source=SOURCES, variables=st.dictionaries(NAMES, VALUES), strict=st.booleans())
    @example(source='{{$date "9"}}{{$date a "T"}}', variables={"a": 1e300}, strict=False)
    @example(source="{{toJSON a}}{{gt a 1}}", variables={"a": 10**400}, strict=True)
    def test_nothing_but_a_template_error_is_raised(self, source, variables, strict):
        try:
            render(source, variables, strict=strict, now=NOW)
        except TemplateError:
            assert strict

    @given(source=SOURCES)
    def test_what_the_check_refuses_is_sent_unchanged(self, source):
        try:
            check(source)
        except TemplateError:
            assert render(source, {}, strict=False) == source

    @given(text=st.text().filter(lambda text: "{{" not in text))
    def test_a_text_without_tags_stays_but_for_its_last_newline(self, text):
        assert render(text, {}, strict=True) == text.removesuffix("\n")
