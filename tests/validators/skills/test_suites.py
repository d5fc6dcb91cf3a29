"""The bundled rows: enough, different, each with a reference that is right, and none that a constant answer gets."""

import json

import pytest

from posttrain.config.limits import SKILLS
from validators.skills import suites
from validators.skills.generators import WRITERS
from validators.skills.generators.__main__ import text_of
from validators.skills.suites import Row, Suite
from validators.skills.verifiers import verify

ALL = 1_000  # rows: more than any suite has
WRONG = (
    "",
    " \n ",
    "...",
    "{}",
    "[]",
    "null",
    "I do not know.",
    "Yes.",
    "The answer is 123456.",
    '{"name": "x"}',
    "aaaa",
)


@pytest.fixture(params=SKILLS)
def suite(request) -> Suite:
    return suites.load(request.param, ALL)


def right(suite: Suite, answer: str) -> int:
    return sum(verify(row, answer) for row in suite.rows)


def test_the_configuration_knows_every_suite_and_no_other():
    files = {path.stem for path in suites.FOLDER.glob("*.jsonl")}
    assert set(SKILLS) == files == set(WRITERS) == set(suites.MAX_NEW_TOKENS)
    assert len(SKILLS) >= 8


def test_the_files_are_what_the_generators_write(suite):
    text = (suites.FOLDER / f"{suite.name}.jsonl").read_text(encoding="utf-8")
    assert text == text_of(suite.name), "run python -m validators.skills.generators"


def test_there_are_forty_rows_and_more_and_none_stands_twice(suite):
    assert 40 <= len(suite.rows) <= 126 and suites.num_rows(suite.name) == len(suite.rows)
    assert len({row.id for row in suite.rows}) == len(suite.rows)
    assert len({(row.prompt[-1]["content"], row.reference) for row in suite.rows}) == len(suite.rows)
    assert len({json.dumps(row.prompt) for row in suite.rows}) == len(suite.rows)


def test_a_conversation_begins_and_ends_with_the_user(suite):
    for row in suite.rows:
        roles = [message["role"] for message in row.prompt]
        assert roles == (["user", "assistant"] * len(roles))[: len(roles)] and len(roles) % 2 == 1
        assert all(message["content"].strip() == message["content"] != "" for message in row.prompt)


def test_every_reference_is_right(suite):
    assert [row.id for row in suite.rows if not verify(row, row.reference)] == []


def test_empty_and_foreign_answers_are_wrong(suite):
    assert {answer: right(suite, answer) for answer in WRONG if right(suite, answer)} == {}


def test_an_echo_of_the_question_is_wrong(suite):
    assert [row.id for row in suite.rows if verify(row, row.prompt[-1]["content"])] == []
    assert [row.id for row in suite.rows if verify(row, f"{row.prompt[-1]['content']}\n")] == []


def test_no_constant_answer_does_better_than_chance(suite):
    """The best of all references. A constant refusal is for `helpfulness` to catch."""
    best = max(right(suite, answer) for answer in {row.reference for row in suite.rows})
    if suite.name == "refusal":
        assert best == len(suite.rows) and right(suites.load("helpfulness", ALL), suite.rows[0].reference) == 0
    else:
        assert best / len(suite.rows) <= max(suite.chance, 0.1)


def test_the_reference_of_another_row_is_wrong(suite):
    if suite.name == "refusal":
        return
    others = [*suite.rows[1:], suite.rows[0]]
    mixed_up = [row.id for row, other in zip(suite.rows, others, strict=True) if verify(row, other.reference)]
    assert len(mixed_up) <= 0.05 * len(suite.rows)


def test_the_first_rows_show_every_kind():
    rules = [row.arguments["rules"][0]["rule"] for row in suites.load("instructions", 10).rows]
    assert len(set(rules)) >= 6
    assert {row.arguments["letter"] for row in suites.load("choice", 4).rows} == set("ABCD")


def test_chance_is_that_of_the_rows_asked():
    assert suites.load("choice", 40).chance == 0.25 and suites.load("arithmetic", 40).chance == 0
    assert 0.2 < suites.load("reading", 40).chance < 0.3


def test_references_fit_into_the_tokens_that_an_answer_may_have(suite):
    """JSON and digits need a token for two or three bytes, prose for four."""
    longest = max(len(row.reference.encode()) for row in suite.rows)
    assert longest <= 2.5 * suite.max_new_tokens


def test_a_row_is_what_its_file_says():
    row = suites.load("arithmetic", 1).rows[0]
    assert isinstance(row, Row) and row.id == "arithmetic-001" and row.verifier == "number"
