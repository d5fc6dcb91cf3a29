import json
from pathlib import Path

import pytest

from runner import parameters


def test_local_paths_of_several_data_sets_become_absolute():
    given = json.dumps(["rows.jsonl", {"uri": "gs://b/rows.jsonl", "weight": 2}, {"uri": "org/rows", "weight": 0.5}])
    expected = [
        {"uri": str(Path("rows.jsonl").absolute()), "weight": 1.0},
        {"uri": "gs://b/rows.jsonl", "weight": 2.0},
        {"uri": "org/rows", "weight": 0.5},
    ]
    assert json.loads(parameters.absolute_data_sets(given, name="sft_dataset")) == expected
    assert parameters.absolute_data_sets("rows.jsonl", name="sft_dataset") == str(Path("rows.jsonl").absolute())
    assert parameters.absolute_data_sets("", name="sft_dataset") == ""
    with pytest.raises(ValueError, match=r"^sft_dataset: '\[rows.jsonl\]' begins as a list and is not JSON"):
        parameters.absolute_data_sets("[rows.jsonl]", name="sft_dataset")
