import json

import pytest

from posttrain.config import load_config
from posttrain.config.mixture import Part, as_parameter, parts_of, uris_of


def test_an_address_is_one_data_set_of_weight_1():
    assert parts_of("gs://b/rows.jsonl") == [Part(uri="gs://b/rows.jsonl", weight=1)]
    assert as_parameter(parts_of("org/rows@v1")) == "org/rows@v1"
    assert parts_of("") == [] and as_parameter([]) == ""


@pytest.mark.parametrize(
    "text",
    ['["a.jsonl", {"uri": "b.jsonl", "weight": 2.5}]', ' [{"uri": "a.jsonl"}, {"uri": "b.jsonl", "weight": 2.5}]'],
)
def test_a_list_of_addresses_and_weights(text):
    parts = parts_of(text)
    assert parts == [Part(uri="a.jsonl"), Part(uri="b.jsonl", weight=2.5)]
    assert parts_of(as_parameter(parts)) == parts
    assert uris_of(text) == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[a.jsonl]", "begins as a list and is not JSON: give an address, or a list of"),
        ("[]", "names no data set"),
        ('[""]', "names no data set"),
        ('["a", {"uri": "a", "weight": 2}]', "names 'a' twice: name it once"),
        ('[{"uri": "a", "weight": 0}]', "0.weight = '0': Input should be greater than 0"),
        ('[{"uri": "a", "weight": NaN}]', "[0].weight"),
        ('[{"uri": "a", "uri": "b"}]', "'[0].uri' "),
        ('[{"url": "a"}]', "0.uri = "),
        ('[{"uri": "a", "share": 2}]', "0.share = '2': Extra inputs"),
        ("[3]", "Input should be"),
    ],
)
def test_what_is_no_list_of_data_sets_is_refused(text, words):
    with pytest.raises(ValueError) as caught:
        parts_of(text)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_configuration_may_hold_a_list_and_settings_too(tmp_path):
    path = tmp_path / "pipeline.yaml"
    path.write_text("sft_dataset:\n- a.jsonl\n- {uri: b.jsonl, weight: 0.5}\npreference_dataset: [p.jsonl]\n")
    config = load_config(path)
    assert json.loads(config.sft_dataset) == [{"uri": "a.jsonl", "weight": 1.0}, {"uri": "b.jsonl", "weight": 0.5}]
    assert config.preference_dataset == "p.jsonl"
    assert load_config(path, ["sft_dataset=[c.jsonl, {uri: d.jsonl}]"]).sft_dataset == as_parameter(
        parts_of('["c.jsonl", "d.jsonl"]')
    )
    with pytest.raises(ValueError, match=r"--set sft_dataset: .*names 'a' twice"):
        load_config(path, ["sft_dataset=[a, a]"])
    with pytest.raises(ValueError, match="sft_dataset = '3'"):
        load_config(path, ["sft_dataset=3"])
