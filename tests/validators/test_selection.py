"""A checkpoint's answers to rows that its training has set aside."""

import json

import pytest

from posttrain.config import OutputFormat, Selection
from posttrain.rows.formats import write_jsonl
from validators import selection


@pytest.mark.long
def test_a_checkpoint_is_judged_by_its_own_answers(tmp_path, untaught, declining_adapter, declining_rows):
    rows = declining_rows[:3]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    rule = Selection(answer_match="exact", max_new_tokens=24, module="validators.selection")
    config = rule.model_dump_json()
    paths = {
        "base": untaught,
        "adapter": declining_adapter,
        "rows": tmp_path / "rows.jsonl",
        "output": tmp_path / "out",
    }
    selection.main([*(f"--{name}={path}" for name, path in paths.items()), f"--config={config}"])
    scores = json.loads((tmp_path / "out").read_text())
    assert len(scores) == 3 and set(scores) <= {0.0, 1.0} and sum(scores) >= 2
    ill_formed = rule.model_copy(
        update={"output_format": OutputFormat(kind="json_schema", json_schema={"type": "object"})}
    )
    assert selection.scores(untaught, declining_adapter, rows[:1], ill_formed) == [0.0]


def test_the_command_logs_as_every_step_does_and_writes_its_scores(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(selection, "configure_logging", lambda: done.append("logging"))
    monkeypatch.setattr(selection, "scores", lambda base, adapter, rows, rule: [len(rows) / 4, rule.max_new_tokens])
    write_jsonl(tmp_path / "rows", [{"id": "a"}, {"id": "b"}])
    config = Selection(max_new_tokens=24, module="validators.selection").model_dump_json()
    paths = [f"--{name}={tmp_path / name}" for name in ("base", "adapter", "rows", "output")]
    selection.main([*paths, f"--config={config}"])
    assert done == ["logging"] and json.loads((tmp_path / "output").read_text()) == [0.5, 24]


def test_the_command_needs_every_one_of_its_flags(capsys):
    with pytest.raises(SystemExit):
        selection.main([])
    assert "required: --base, --adapter, --rows, --config, --output\n" in capsys.readouterr().err
