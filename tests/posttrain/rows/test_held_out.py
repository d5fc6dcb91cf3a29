"""How many held-out rows and prompts there are, and the share that would be enough."""

import hashlib

import pytest

from posttrain.config.evidence import Evidence, Need
from posttrain.rows.held_out import Prompts, side_of, supplies

KEYS = [hashlib.sha256(str(number).encode()).digest() for number in range(240)]
LIMITS = {"min_format_valid_rate": 0.9}


def data_set(eval_fraction: float, *, each: int = 1) -> Prompts:
    held_out = [key for key in KEYS if side_of(key.hex(), eval_fraction) == "eval"]
    return Prompts(held_out * each, set(KEYS))


def evidence_of(of: str, num_rows: int = 35, **values) -> Evidence:
    part = values.pop("part", "held_out")
    return Evidence(needs=[Need(of=of, part=part, num_rows=num_rows, limits=LIMITS)], **values)


def test_prompts_are_counted_once_and_rows_each():
    sets = {"sft": data_set(0.1, each=2)}
    [prompts], [rows] = (supplies(evidence_of(of), sets, {}) for of in ("sft_prompts", "sft_rows"))
    assert rows.num_rows == 2 * prompts.num_rows > 0


def test_prompts_of_both_data_sets_are_counted_together():
    sets = {"sft": data_set(0.1), "preference": Prompts([b"other" * 6 + b"..", *data_set(0.1).held_out], set(KEYS))}
    [both] = supplies(evidence_of("prompts"), sets, {})
    [one] = supplies(evidence_of("sft_prompts"), sets, {})
    assert both.num_rows == one.num_rows + 1


def test_the_advised_share_holds_out_enough_and_a_percent_less_does_not():
    [short] = supplies(evidence_of("sft_prompts"), {"sft": data_set(0.1)}, {})
    assert short.is_short
    [enough] = supplies(evidence_of("sft_prompts"), {"sft": data_set(short.eval_fraction)}, {})
    [less] = supplies(evidence_of("sft_prompts"), {"sft": data_set(short.eval_fraction - 0.01)}, {})
    assert (enough.is_short, less.is_short) == (False, True)


@pytest.mark.parametrize("part", ["selection", "unseen"])
def test_the_share_that_a_sweep_needs_fills_each_part(part):
    first = evidence_of("sft_prompts", part=part, eval_fraction=0.1, unseen_fraction=0.4)
    [short] = supplies(first, {"sft": data_set(0.1)}, {})
    assert short.is_short and short.name == f"{part}_sft_prompts"
    again = first.model_copy(update={"eval_fraction": short.eval_fraction})
    [enough] = supplies(again, {"sft": data_set(short.eval_fraction)}, {})
    assert not enough.is_short


def test_the_parts_of_a_sweep_are_the_whole():
    parts = [
        supplies(evidence_of("sft_rows", part=part, unseen_fraction=0.3), {"sft": data_set(0.1)}, {})[0].num_rows
        for part in ("selection", "unseen")
    ]
    assert all(parts) and sum(parts) == len(data_set(0.1).held_out)


def test_what_is_not_known_is_not_short():
    [unread] = supplies(evidence_of("prompts"), {"sft": data_set(0.1), "preference": None}, {})
    [remote] = supplies(evidence_of("red_team_prompts"), {}, {})
    assert (unread.num_rows, unread.is_short, remote.num_rows, remote.is_short) == (None, False, None, False)


def test_a_shortage_names_numbers_and_keys():
    [short] = supplies(evidence_of("sft_prompts"), {"sft": data_set(0.1)}, {})
    assert short.counted == f"{short.num_rows} different held-out SFT prompts (data.eval_fraction 0.1 of 240 prompts)"
    assert short.shortage == (
        "at confidence 0.95, validation.min_format_valid_rate = 0.9 needs 35 even if every answer is right"
    )
    assert short.remedy.startswith(f"set data.eval_fraction to {short.eval_fraction:g} or give rows with about ")
    assert "; otherwise lower validation.min_format_valid_rate to 0." in short.remedy
    assert short.remedy.endswith(", or lower validation.confidence")


def test_a_file_of_prompts_needs_more_prompts():
    [short] = supplies(evidence_of("red_team_prompts", 16), {}, {"red_team_prompts": 8})
    assert short.counted == "8 different red-team prompts"
    assert short.remedy.startswith("add prompts to validation.red_team_prompts; otherwise lower ")


def test_no_share_is_advised_where_half_of_the_rows_would_not_do():
    [short] = supplies(evidence_of("sft_prompts", 200), {"sft": data_set(0.1)}, {})
    assert short.eval_fraction is None and short.remedy.startswith("give rows with about ")
