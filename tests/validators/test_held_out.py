import argparse
import logging
from pathlib import Path

import pytest

from posttrain.rows import chat
from validators import held_out

BOTH = ["--sft-eval", "s.jsonl", "--preference-eval", "p.jsonl"]


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    held_out.add_flags(parser)
    return parser


@pytest.mark.parametrize("argv", [BOTH, BOTH[:2], BOTH[2:]])
def test_rows_of_one_kind_are_enough(parser, argv):
    args = held_out.parse_args(parser, argv)
    assert args.sft_eval == ("s.jsonl" if "s.jsonl" in argv else None)
    assert args.preference_eval == ("p.jsonl" if "p.jsonl" in argv else None)


def test_a_gate_without_rows_is_not_started(parser, capsys):
    with pytest.raises(SystemExit):
        held_out.parse_args(parser, [])
    assert "pass --preference-eval, --sft-eval or both" in capsys.readouterr().err


def test_rows_that_training_leaves_out_are_not_asked(tiny_model: Path, task_api_rows: dict, caplog):
    rows = task_api_rows["sft"][:3]
    longer = [rows[0] | {"completion": [{"role": "assistant", "content": f"{at} " * 99}]} for at in range(2)]
    limit = max(chat.num_tokens(chat.ChatTokenizer(tiny_model), row) for row in rows)
    caplog.set_level(logging.WARNING)
    assert held_out.within(tiny_model, rows, limit) == rows
    assert caplog.messages == []
    assert held_out.within(tiny_model, [longer[0], *rows, longer[1]], limit) == rows
    assert caplog.messages == [f"2 of 5 held-out rows left out: longer than {limit} tokens"]
    assert held_out.within(tiny_model, longer, limit) == longer


def test_a_broken_tokenizer_leaves_no_row_out(tmp_path, task_api_rows, caplog):
    rows = task_api_rows["sft"][:3]
    assert held_out.within(tmp_path / "missing", rows, 1) == rows
    assert caplog.messages[0].startswith("no held-out row is left out for its length: ")
