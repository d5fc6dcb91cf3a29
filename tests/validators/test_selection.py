"""A checkpoint's answers to rows that its training has set aside."""

import json

import pytest

from posttrain.config import OutputFormat, Selection
from posttrain.rows.formats import write_jsonl
from validators import selection
from validators.answers import JudgedAnswer
from validators.inference import Answer


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


def test_answers_that_could_not_be_scored_are_no_scores(tmp_path, monkeypatch):
    class Answering:
        def __init__(self, rule): ...

        def load(self, base, adapter, *, rank): ...

        def answer(self, prompts):
            return [JudgedAnswer(prompt, Answer("4", True, 1), None) for prompt in prompts]

    monkeypatch.setattr(selection, "Session", Answering)
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    rule = Selection(answer_match="number", module="validators.selection")
    row = {"id": "a", "prompt": [{"role": "user", "content": "2 + 2?"}]}
    assert selection.scores(tmp_path, tmp_path, [row | {"references": ["4"]}], rule) == [1.0]
    with pytest.raises(RuntimeError, match="reference 'four' holds no number"):
        selection.scores(tmp_path, tmp_path, [row | {"references": ["four"]}], rule)
