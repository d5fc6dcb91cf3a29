"""JSON and YAML in which a value would be lost or mean two things are refused, each by key and remedy."""

import json
import re

import pytest

from posttrain.config.documents import MAX_DEPTH, parse_json, parse_yaml


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 1}', "'a' appears twice"),
        ('{"m": [{"role": "user"}, {"role": "user", "role": "system"}]}', r"'m\[1\].role' appears twice"),
        ('[{"a": 1}, {"b": {"c": 1, "d": 2, "c": 3}}]', r"'\[1\].b.c' appears twice"),
        ('{"id": ' + "9" * 5000 + "}", "'id' is a number of 5000 digits, too long for one: write it as text"),
        ('{"id": -' + "9" * 4301 + "}", "'id' is a number of 4301 digits"),
        ('{"a": [0, NaN]}', r"'a\[1\]' is NaN, which is no number in JSON"),
        ('{"a": -Infinity}', "'a' is -Infinity, which"),
        ("Infinity", "^is Infinity, which"),
        ('{"a": 1e999}', "'a' is 1e999, too large a number"),
        ('{"a": ' + nested(MAX_DEPTH) + "}", "'a' has more than 200 levels of lists and objects: flatten it"),
        ('{"a": ' + nested(990) + "}", "more than 200 levels of lists and objects"),
        ('{"a": ' + nested(100_000) + "}", "JSON with more than 200 levels of lists and objects"),
        (r'{"a": {"b": "half \ud83d"}}', "'a.b' has an unpaired UTF-16 surrogate in 'half .*': repair the text's"),
        (r'{"a": {"half \uDE00": 1}}', "'a' has an unpaired UTF-16 surrogate"),
    ],
)
def test_json_is_refused_by_the_key_of_its_value(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text)
    assert not isinstance(caught.value, json.JSONDecodeError)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "NaN Infinity", "b": [1, -0.5, 1e300, null, true], "": {}}',
        r'{"a": "\ud83d\ude00 \\ud83d"}',
        '{"a": ' + nested(MAX_DEPTH - 1) + "}",
        "[" + ",".join(['{"role": "user"}'] * 300) + "]",
        '{"id": ' + "9" * 4300 + "}",
    ],
)
def test_all_other_json_is_what_python_makes_of_it(text):
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "sft:\n  lora_r: 8\ndpo: {}\nsft:\n  epochs: 2\n",
            "line 4: 'sft' appears twice, first in line 1, and only one",
        ),
        ("validation:\n  max_loss: 1\n  judge: model\n  max_loss: 9\n", "line 4: 'max_loss' .* first in line 2"),
        ("stages: [{name: sft, name: dpo}]", "line 1: 'name' appears twice"),
        ("'a': 1\na: 2", "line 2: 'a' appears twice"),
        ("a: {<<: {b: 1}, <<: {c: 1}}", "'<<' appears twice"),
        ("a: &x {b: *x}", "'a' has more than 200 levels of lists and objects"),
        ("a: " + nested(5000), "YAML with more than 200 levels of lists and objects"),
        ("a: 2024-13-45", "not YAML: '2024-13-45' is no value: month must be .* line 1, column 4"),
        ("a: " + "9" * 5000, "not YAML: '9{60}' is no value: .* line 1"),
        (r'a: ["x", "\ud83d"]', r"'a\[1\]' has an unpaired UTF-16 surrogate"),
        ("a: [1\nb: 2", "not YAML: .* line 2"),
    ],
)
def test_yaml_is_refused_by_line_and_key(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_yaml(text)
    assert str(caught.value).isprintable()


def test_a_key_that_overrides_a_merged_one_does_not_stand_twice():
    text = "base: &b {lora_r: 8, epochs: 1}\nsft:\n  <<: *b\n  lora_r: 4\nmore: {<<: *b, lora_r: 2}\nlist: [*b, *b]\n"
    value = parse_yaml(text)
    assert (value["sft"], value["more"]["lora_r"]) == ({"lora_r": 4, "epochs": 1}, 2)
    assert not re.search("twice", str(value))
