"""What a template may cost: a small one must not hold up a worker, a large one must work."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.job import InvokeJob
from schemas.template import TemplateError, TemplateTooDearError, check, render, variables_of
from schemas.template_budget import MAX_TAGS, Budget

SIXTY = {"a": list(range(60)), "b": "x" * 20_000}
NESTED = "{{#each a}}{{#each ../a}}{{#each ../../a}}{{#each ../../../a}}x{{/each}}{{/each}}{{/each}}{{/each}}"


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("source", "variables"),
    [
        (NESTED, SIXTY),
        ("{{#a}}{{#@root.a}}{{#@root.a}}{{#@root.a}}{{/@root.a}}{{/@root.a}}{{/@root.a}}{{/a}}", SIXTY),
        ("{{#each a}}{{#each ../a}}{{../../b}}{{/each}}{{/each}}", SIXTY),
        ("{{#each a}}{{#each ../a}}{{toJSON ../../b}}{{/each}}{{/each}}", SIXTY),
        ("{{#each a}}{{#each ../a}}" + "x" * 20_000 + "{{/each}}{{/each}}", SIXTY),
        ("{{#each a}}{{toJSON ../l}}{{/each}}", SIXTY | {"l": [[1, 2, 3]] * 6_000}),
        ("{{#each a}}{{../l}}{{/each}}", SIXTY | {"l": [[1, 2, 3]] * 6_000}),
        ("{{#each a}}{{../l}}{{/each}}", SIXTY | {"l": [{"k": 1}] * 3_000}),
        ("{{#each a}}{{#if (eq ../l 'x')}}{{/if}}{{/each}}", SIXTY | {"l": [1] * 12_000}),
        ("{{#each a}}{{formatMessages ../l}}{{/each}}", SIXTY | {"l": [{"role": "user", "content": [1] * 3_000}] * 3}),
        ("{{#each a}}{{$date ../p}}{{/each}}", SIXTY | {"p": "MMMM " * 3_000}),
        ("{{toJSON l}}", {"l": "[" * 400 + "[1]," * 180_000 + "1" + "]" * 400}),
        ("{{l}}", {"l": [[]] * 600_000}),
    ],
)
def test_a_bomb_is_refused_strictly_or_not(source: str, variables: dict[str, Any], strict: bool) -> None:
    with pytest.raises(TemplateTooDearError, match="more than"):
        render(source, variables, strict=strict)


def test_a_long_list_and_a_long_document_are_printed() -> None:
    items = [{"name": f"n{i}", "price": i} for i in range(1_000)]
    listed = render("{{#each items}}- {{name}}: {{price}}\n{{/each}}", {"items": items}, strict=True)
    assert listed.count("- n") == 1_000
    assert len(render("{{d}}\n" * 5, {"d": "x" * 200_000}, strict=True)) == 1_000_004
    assert len(render("{{toJSON items}}", {"items": items}, strict=True)) > 20_000


def test_renderings_share_a_budget_that_is_given() -> None:
    budget = Budget(chars=2_500)
    variables = variables_of({"d": "x" * 1_000}, budget=budget)
    for _ in range(2):
        render("{{d}}", variables, strict=True, budget=budget)
    with pytest.raises(TemplateTooDearError):
        render("{{d}}", variables, strict=True, budget=budget)


def test_who_writes_the_charge_by_hand_gains_nothing() -> None:
    with pytest.raises(TemplateTooDearError):
        render("{{#each a}}{{$spend -999999 -999999}}" + NESTED[11:], SIXTY, strict=False)


def test_a_template_and_all_of_a_job_have_a_bounded_number_of_tags() -> None:
    with pytest.raises(TemplateError, match="tags"):
        check("{{a}}" * (MAX_TAGS + 1))
    message = {"role": "user", "content": "{{a}}" * 100}
    with pytest.raises(ValidationError, match="tags"):
        InvokeJob.model_validate({"assistant": "w/p/a", "template": [message] * (MAX_TAGS // 100 + 1)})


def test_a_long_number_with_a_letter_at_its_end_is_no_number() -> None:
    assert render("{{#if (gt a 1)}}x{{/if}}", {"a": "9" * 1_000_000 + "x"}, strict=True) == ""
