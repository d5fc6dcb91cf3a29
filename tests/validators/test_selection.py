"""A checkpoint's answers to rows that its training has set aside."""

import json

import pytest

from posttrain.config import Selection
from posttrain.rows.formats import write_jsonl
from validators import selection


@pytest.mark.long
def test_a_checkpoint_is_judged_by_its_own_answers(tmp_path, untaught, declining_adapter, declining_rows):
    rows = declining_rows[:3]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    config = Selection(answer_match="exact", max_new_tokens=24, module="validators.selection").model_dump_json()
    paths = {
        "base": untaught,
        "adapter": declining_adapter,
        "rows": tmp_path / "rows.jsonl",
        "output": tmp_path / "out",
    }
    selection.main([*(f"--{name}={path}" for name, path in paths.items()), f"--config={config}"])
    scores = json.loads((tmp_path / "out").read_text())
    assert len(scores) == 3 and set(scores) <= {0.0, 1.0} and sum(scores) >= 2
