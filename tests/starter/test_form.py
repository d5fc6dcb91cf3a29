import json

import pytest

from starter.form import recognise

CITIES = [f"City {number}" for number in range(40)]

JSON = [json.dumps({"city": city}) for city in CITIES]


def of(texts, prompt="Where is it?", declines_with=None):
    return recognise([([{"role": "user", "content": prompt}], text) for text in texts], declines_with)


@pytest.mark.parametrize(
    ("texts", "kind", "match"),
    [
        (JSON, "json_schema", "json"),
        (["France", "Peru"] * 20, "regex", "exact"),
        (["12", "1,000.5", "-3"] * 9 + CITIES[:1], "text", "contains"),
        ([str(number) for number in range(40)], "regex", "number"),
        (CITIES, "text", "contains"),
        ([f"{city} lies where two rivers meet, far from the sea." for city in CITIES], "text", "none"),
        (['{"city": "A"}', "not JSON", "nor this"] * 5, "text", "contains"),
    ],
)
def test_the_strictest_form_that_all_answers_have(texts, kind, match):
    form = of(texts)
    assert (form.output_format.kind, form.answer_match) == (kind, match)


def test_a_call_is_one_where_its_function_is_offered():
    calls = [json.dumps({"name": "find", "arguments": {"city": city}}) for city in CITIES]
    assert of(calls, prompt="find(city): where it is").output_format.kind == "tool_call"
    assert of(calls).output_format.kind == "json_schema"


def test_the_schema_has_the_keys_and_types_that_there_are():
    form = of(['{"city": "A", "size": 1}', '{"city": "B", "size": 1.5}', '{"city": null, "size": 2, "old": true}'])
    assert form.output_format.json_schema == {
        "type": "object",
        "properties": {"city": {"type": ["null", "string"]}, "old": {"type": "boolean"}, "size": {"type": "number"}},
        "required": ["city", "size"],
        "additionalProperties": False,
    }


def test_the_sentence_that_declines():
    assert of(JSON + ["I only know cities."] * 5).output_format.declines_with == "I only know cities."
    assert of(CITIES, declines_with="No.").output_format.declines_with == "No."
    assert of(CITIES).output_format.declines_with is None
