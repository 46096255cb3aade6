from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

from producer.bulk.assistant_file import ASSISTANT_FILE_MAX_BYTES, load
from schemas import InputError, OutputSpec
from schemas.errors import InputErrors

EXAMPLES = Path(__file__).parents[2] / "ops" / "examples"

GOOD = """\
assistant: demo/reviews/sentiment
environment: production
model: smollm2-135m
instructions: You label product reviews.
template:
  - {role: user, content: "Review: {{ review }}"}
output: {type: enum, enum: [positive, negative]}
temperature: 0
max_tokens: 8
"""


@pytest.fixture
def written(tmp_path):
    def write(text: str | bytes) -> Path:
        path = Path(tmp_path, "assistant.yaml")
        path.write_bytes(text if isinstance(text, bytes) else dedent(text).encode())
        return path

    return write


def refusal_of(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    return caught.value


def problems_of(path: Path) -> list[str]:
    """Return each problem as `LINE: WHAT; MEND`."""
    refused = refusal_of(path)
    assert isinstance(refused, InputErrors)
    assert str(refused).splitlines() == [str(problem) for problem in refused.problems]
    return [str(problem).removeprefix(f"{path}:") for problem in refused.problems]


def test_the_file_of_the_design_is_read_whole(written):
    config = load(written(GOOD))
    assert config.assistant == "demo/reviews/sentiment"
    assert config.workspace == "demo"
    assert config.template[0].content == "Review: {{ review }}"
    assert config.output == OutputSpec(type="enum", enum=("positive", "negative"))
    assert (config.temperature, config.max_tokens, config.strict_variables) == (0, 8, True)


def test_a_byte_order_mark_is_dropped(written):
    assert load(written(b"\xef\xbb\xbf" + GOOD.encode())).model == "smollm2-135m"


def test_a_date_stays_the_text_that_was_typed(written):
    assert load(written(GOOD + "description: 2026-11-21\n")).description == "2026-11-21"


def test_a_schema_is_taken_under_its_name_in_the_contract(written):
    config = load(written(GOOD.replace("{type: enum, enum: [positive, negative]}", "{type: object, schema: {}}")))
    assert config.output is not None
    assert config.output.json_schema == {}


def test_the_shipped_example_is_valid_and_knows_no_review_of_the_file():
    config = load(EXAMPLES / "sentiment.yaml")
    assert config.assistant == "demo/reviews/sentiment"
    reviews = (EXAMPLES / "reviews.csv").read_text(encoding="utf-8")
    shots = [str(message.content).removeprefix("Review: ") for message in config.template if message.role == "user"]
    assert len(shots) > 4
    assert not [shot for shot in shots if shot in reviews]


class TestFilesThatCannotBeRead:
    def test_a_missing_file_is_named(self, tmp_path):
        refused = refusal_of(tmp_path / "nowhere.yaml")
        assert str(refused) == f"{tmp_path}/nowhere.yaml: no such file; check the path of the assistant file"

    def test_a_directory_is_named(self, tmp_path):
        assert str(refusal_of(tmp_path)) == f"{tmp_path}: is a directory; name the assistant's YAML file in it"

    def test_bytes_that_are_not_utf8_are_shown_with_their_line(self, written):
        path = written(GOOD.encode() + "description: caf\xe9\n".encode("latin-1"))
        assert str(refusal_of(path)) == (
            f"{path}:10: not UTF-8: byte 0xe9 at offset {len(GOOD) + 16}; save the file as UTF-8"
        )

    def test_a_character_that_yaml_forbids_is_shown_with_its_line(self, written):
        path = written("assistant: a/b/c\nmodel: x\0y\n")
        assert str(refusal_of(path)) == f"{path}:2: a character that YAML does not allow: '\\x00'; remove it"

    @pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
    def test_an_empty_file_is_told_from_an_invalid_one(self, written, text):
        path = written(text)
        assert str(refusal_of(path)) == f"{path}: is empty; describe an assistant: `assistant:`, `template:`, …"

    def test_a_file_that_is_far_too_large_is_not_parsed(self, written):
        refused = refusal_of(written("a" * (ASSISTANT_FILE_MAX_BYTES + 1)))
        assert refused.what == "is larger than 4,194,304 bytes"


class TestYamlThatIsNoAssistant:
    def test_invalid_yaml_is_refused_with_the_line_of_the_problem(self, written):
        refused = refusal_of(written("assistant: a/b/c\nmodel: 'open\n"))
        assert refused.line == 3
        assert refused.what.startswith("not valid YAML: while scanning a quoted scalar")
        assert refused.mend is not None
        assert "check indentation" in refused.mend

    def test_a_second_document_is_refused_with_its_line(self, written):
        refused = refusal_of(written(GOOD + "---\nassistant: a/b/d\n"))
        assert refused.line == 10
        assert "expected a single document" in refused.what

    def test_a_python_tag_is_refused_and_not_run(self, written):
        refused = refusal_of(written("assistant: a/b/c\nmodel: !!python/object/apply:os.getcwd []\n"))
        assert refused.line == 2
        assert "could not determine a constructor" in refused.what

    def test_a_number_of_thousands_of_digits_is_refused_with_its_line(self, written):
        assert refusal_of(written(f"assistant: a/b/c\nseed: {'1' * 5000}\n")).line == 2

    @pytest.mark.parametrize(
        ("text", "line", "first"),
        [(GOOD + "model: other\n", 10, 3), ("a: 1\nb: {c: 1, d: 2,\n    c: 3}\n", 3, 2), ("{a: 1, a: 2}\n", 1, 1)],
    )
    def test_a_key_that_stands_twice_is_refused_with_both_lines(self, written, text, line, first):
        refused = refusal_of(written(text))
        assert refused.line == line
        assert re.fullmatch(rf"key '\w+' stands here and in line {first}", refused.what)
        assert refused.mend == "keep one of the two"

    @pytest.mark.parametrize("text", ["- assistant: a/b/c\n", "just text\n"])
    def test_a_file_that_is_no_mapping_is_refused(self, written, text):
        path = written(text)
        assert str(refusal_of(path)) == (
            f"{path}:1: an assistant file is a mapping, `key: value` lines; "
            "begin with `assistant: workspace/project/name`"
        )

    def test_an_alias_that_holds_itself_is_refused(self, written):
        refused = refusal_of(written("assistant: a/b/c\noutput: {type: object, schema: &a {properties: *a}}\n"))
        assert (refused.what, refused.line) == ("an alias refers to itself", 2)

    def test_aliases_that_multiply_are_refused_before_they_do(self, written):
        bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
        assert refusal_of(written(bomb)).what == "holds more than 100,000 values"

    def test_nesting_beyond_the_parser_is_refused(self, written):
        assert refusal_of(written("a: " + "[" * 20_000)).what == "is nested too deeply"


class TestWrongKeysAndValues:
    def test_an_unknown_key_is_refused_with_its_line_and_the_closest_known_one(self, written):
        path = written(GOOD.replace("model:", "modle:"))
        assert problems_of(path) == ["3: unknown key 'modle'; did you mean 'model'?"]

    def test_an_unknown_key_like_no_other_is_answered_with_all_of_them(self, written):
        (problem,) = problems_of(written(GOOD + "zzz:\n  y\n"))
        assert problem.startswith("10: unknown key 'zzz'; remove it, or use one of ")
        assert all(key in problem for key in ("assistant", "environment", "template", "max_tokens"))

    def test_an_unknown_key_of_a_template_message_is_compared_with_that_messages_keys(self, written):
        path = written(GOOD.replace('content: "Review', 'contnet: "Review'))
        assert problems_of(path) == [
            "6: key 'template[0].content' is missing; add `content:`",
            "6: unknown key 'template[0].contnet'; did you mean 'content'?",
        ]

    def test_an_unknown_key_of_the_output_is_compared_with_the_outputs_keys(self, written):
        path = written(GOOD.replace("{type: enum, enum: [positive, negative]}", "\n  type: object\n  shcema: {}"))
        assert problems_of(path) == ["9: unknown key 'output.shcema'; did you mean 'schema'?"]

    def test_a_key_that_is_a_number_is_refused(self, written):
        assert problems_of(written(GOOD + "1: x\n"))[0].startswith("10: unknown key '1'; remove it")

    @pytest.mark.parametrize(
        ("old", "new", "problem"),
        [
            (
                "temperature: 0",
                "temperature: hot",
                "8: 'temperature' must be a number, not 'hot'; write a number, without quotes or units",
            ),
            (
                "temperature: 0",
                "temperature: 3",
                "8: 'temperature' should be less than or equal to 2, not 3; set 'temperature' to such a value",
            ),
            (
                "max_tokens: 8",
                "max_tokens: 0",
                "9: 'max_tokens' should be greater than or equal to 1, not 0; set 'max_tokens' to such a value",
            ),
            (
                "max_tokens: 8",
                "max_tokens: 8.5",
                "9: 'max_tokens' must be a whole number, not 8.5; write a number, without quotes or units",
            ),
            ("model: smollm2-135m", "model: 135", "3: 'model' must be text, not 135; put it in quotes"),
            (
                "instructions: You label product reviews.",
                "instructions: {{ task }}",
                "4: ",  # YAML reads a mapping whose key is a mapping
            ),
            (
                "instructions: You label product reviews.",
                "instructions:",
                "4: 'instructions' must be text, not empty; write a value after the colon, or remove the key",
            ),
            (
                "[positive, negative]",
                "[yes, no]",
                (
                    "7: 'output.enum[0]' must be text, not true; "
                    "put it in quotes: YAML reads an unquoted yes, no, on or off as true or false"
                ),
            ),
            (
                "output: {type: enum, enum: [positive, negative]}",
                "output: positive",
                "7: 'output' must be a mapping, not 'positive'; write `key: value` lines under it",
            ),
            (
                "output: {type: enum, enum: [positive, negative]}",
                "output: {type: enum}",
                "7: 'output': output type enum needs `enum`, a list of at least one value; write `{type: enum, enum: ",
            ),
            (
                "output: {type: enum, enum: [positive, negative]}",
                "output: {type: object, schema: {type: thing}}",
                "7: 'output': `schema` is no valid JSON Schema: ",
            ),
            (
                "role: user",
                "role: usr",
                (
                    "6: 'template[0].role' should be 'system', 'user' or 'assistant', not 'usr'; "
                    "set 'template[0].role' to such a value"
                ),
            ),
            (
                "demo/reviews/sentiment",
                "sentiment",
                "1: 'assistant' cannot be 'sentiment'; write workspace/project/assistant, each part of letters, ",
            ),
            ("environment: production", "environment: a b", "2: 'environment' cannot be 'a b'; use letters, digits"),
        ],
    )
    def test_a_wrong_value_is_refused_with_its_line_and_the_mend(self, written, old, new, problem):
        assert old in GOOD
        path = written(GOOD.replace(old, new))
        assert str(refusal_of(path)).removeprefix(f"{path}:").startswith(problem)

    def test_a_template_that_is_no_list_is_refused(self, written):
        path = written("assistant: a/b/c\ntemplate: Review\n")
        assert problems_of(path) == [
            "2: 'template' must be a list, not 'Review'; write a list: `- item` lines, or [first, second]"
        ]

    def test_a_missing_address_is_refused(self, written):
        assert problems_of(written("instructions: Label.\n")) == [
            "1: key 'assistant' is missing; add `assistant:`",
        ]

    def test_an_assistant_that_says_nothing_is_refused(self, written):
        assert problems_of(written("# mine\nassistant: a/b/c\n")) == [
            (
                "2: an assistant needs `instructions`, a `template`, or both; "
                "add what is missing, or remove what does not belong"
            ),
        ]

    def test_an_unparsable_template_is_refused_with_the_line_of_its_text(self, written):
        path = written(
            """\
            assistant: a/b/c
            template:
              - role: user
                content: fine
              - role: user
                content: |
                  Review: {{ review }
            """
        )
        assert problems_of(path) == [
            (
                "6: 'template[1].content': template does not parse: unclosed tag; "
                "close every {{ with }} and every {{#block}} with {{/block}}"
            )
        ]

    def test_unparsable_instructions_are_refused_with_their_line(self, written):
        (problem,) = problems_of(written("assistant: a/b/c\ninstructions: 'Say {{#if x}} yes'\n"))
        assert problem.startswith("2: 'instructions': template does not parse: unclosed block; close every {{")

    def test_all_problems_are_reported_in_the_order_of_the_file(self, written):
        path = written(GOOD.replace("model:", "modle:").replace("max_tokens: 8", "max_tokens: x").replace("user", "me"))
        assert [problem.split(":")[0] for problem in problems_of(path)] == ["3", "6", "9"]
