"""Data and scoring of the function-calling example, on a wheel of a few questions made here."""

import json
import random
import zipfile
from pathlib import Path

import pytest

from examples.function_calling import data
from examples.function_calling.evaluate import named_model, rate, summarise
from examples.function_calling.model import weight_name
from examples.function_calling.prepare import fetch_wheel, write_jsonl
from examples.function_calling.scoring import DECLINE, equal, score

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
    """80 questions with one function, 20 with two, 60 that none fits; one text stands in two files."""
    weather, traffic = "Weather number {} in Paris for 3 days?", "Traffic {} in Rome for 2 days?"
    simple = [question(i, "simple_python", weather.format(i), [f"weather_{i}"]) for i in range(80)]
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
def questions(wheel) -> list[data.Question]:
    return data.read_questions(wheel)


@pytest.fixture(scope="module")
def paris(questions) -> data.Question:
    return next(q for q in questions if q.id == "simple_python_1")


def texts(rows: list[dict]) -> set[str]:
    return {row["prompt"][-1]["content"] for row in rows}


def test_each_question_is_read_once_and_answered_with_what_must_be_there(questions, paris):
    assert len(questions) == len({q.text for q in questions}) == 160
    assert json.loads(paris.answer) == {"name": "weather_1", "arguments": {"city": "Paris", "days": 3}}
    assert paris.schema["type"] == "object"
    assert next(q for q in questions if q.id == "irrelevance_0").answer == DECLINE


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


def test_files_are_the_same_twice_and_share_no_heldout_question(wheel):
    files = data.files(wheel)
    assert files == data.files(wheel)
    heldout, red_team = texts(files["heldout.jsonl"]), texts(files["red_team.jsonl"])
    training = texts(files["sft.jsonl"]) | texts(files["preferences.jsonl"])
    assert heldout and red_team and not (heldout | red_team) & training and not heldout & red_team
    for rows in files.values():
        assert len(texts(rows)) == len(rows) == len({row["id"] for row in rows})


def test_every_rejected_answer_is_wrong_and_differs_from_the_chosen_one(wheel, questions):
    by_text = {q.text: data.heldout_row(q) for q in questions}
    for row in data.files(wheel)["preferences.jsonl"]:
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        asked = by_text[row["prompt"][-1]["content"]]
        assert score(asked, chosen).arguments and not score(asked, rejected).arguments


def test_mistakes(paris):
    rng = random.Random(0)
    invented = score(data.heldout_row(paris), data.invented_argument(paris, rng))
    assert invented.function and invented.invents and not invented.arguments
    missing = score(data.heldout_row(paris), data.missing_argument(paris, rng))
    assert missing.function and not missing.schema and not missing.arguments


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
    found = score(data.heldout_row(paris), text)
    assert {name for name in found.__slots__ if getattr(found, name)} == set(expected.split())


def test_equal_is_as_lenient_as_the_benchmark():
    assert equal("New-York, US", "new york us") and equal(1, 1.0) and equal({"a": 1}, {"a": [1, 2]})
    assert not equal(True, 1) and not equal([1], [1, 2]) and not equal("1", 1)


def test_summary_counts_calls_and_declines_apart(paris):
    none = data.Question("n", "Who painted this?", paris.functions)
    rows = [data.heldout_row(paris), data.heldout_row(none)]
    rates = summarise(rows, [score(rows[0], paris.answer), score(rows[1], paris.answer)])
    assert str(rates["all arguments right"]) == "100% (21-100)"
    assert str(rates["declines where it should"]) == "0% (0-79)"
    assert rates["calls where it should not (bad)"].count == 1
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
