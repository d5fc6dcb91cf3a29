import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from examples.task_api.generate import DECLINE
from posttrain.config import AlignmentLimits, CheckAlignmentStep, OutputFormat
from posttrain.data import write_jsonl
from posttrain.inference import Answer
from posttrain.merge import merge
from posttrain.verdict import Verdict
from validators import alignment as gate
from validators.answers import JudgedAnswer

PROMPT = [{"role": "user", "content": "?"}]
VALID = JudgedAnswer(PROMPT, Answer(DECLINE, True, 8), None)
BROKEN = JudgedAnswer(PROMPT, Answer("", True, 8), "is empty")
LONG = JudgedAnswer(PROMPT, Answer("ok " * 20, True, 20), None)
BEFORE = gate.Observed(
    chosen=[(-20.0, 10)] * 20,
    rejected=[(-20.0, 10)] * 20,
    answers=[VALID] * 20,
    red_team_answers=[VALID] * 20,
)
AFTER = replace(BEFORE, chosen=[(-19.0, 10)] * 20, rejected=[(-25.0, 10)] * 20)
WRONG = [(-26.0, 10)]


@pytest.fixture
def step(task_api_files: Path) -> CheckAlignmentStep:
    return CheckAlignmentStep(
        validation=AlignmentLimits(
            num_generated_answers=6,
            max_new_tokens=12,
            output_format=OutputFormat(kind="tool_call", declines_with=DECLINE),
            judge="closed_form",
            red_team_prompts=str(task_api_files / "red_team.jsonl"),
        )
    )


@pytest.fixture
def pairs(declining_rows: list[dict]) -> list[dict]:
    """Held-out pairs that prefer declining over prose."""
    prose = [{"role": "assistant", "content": "Sure! All is done."}]
    return [
        {"id": row["id"], "prompt": row["prompt"], "chosen": row["completion"], "rejected": prose}
        for row in declining_rows[32:44]
    ]


def run(
    folder: Path, before: Path, model: Path, rows: list[dict], step: CheckAlignmentStep, *, kind: str = "preference"
) -> Verdict:
    write_jsonl(folder / "eval.jsonl", rows)
    paths = {"before": before, "model": model, f"{kind}-eval": folder / "eval.jsonl", "storage-root": folder / "store"}
    paths |= {name: folder / "out" / name for name in ("verdict", "report", "metrics", "passed")}
    flags = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
    gate.main(["--step", "check_alignment", "--config", step.model_dump_json(exclude_none=True), *flags])
    verdict = Verdict.read((folder / "out" / "verdict").read_bytes())
    assert (folder / "out" / "passed").read_text() == json.dumps(verdict.passed)
    return verdict


def failed(before: gate.Observed, after: gate.Observed, *, with_preferences: bool = True, **limits) -> list[str]:
    step = CheckAlignmentStep(validation=AlignmentLimits(**limits))
    checks = gate.judge(gate.Measured(before=before, after=after), step=step, with_preferences=with_preferences)
    return [check.name for check in checks if check.status != "passed"]


def names(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.failed_checks}


def test_a_model_that_learned_to_prefer_passes(tmp_path, untaught, declining_model, pairs, step):
    verdict = run(tmp_path, untaught, declining_model, pairs, step)
    assert verdict.failed_checks == []
    assert set(verdict.subject) == {"before", "model", "preference_eval", "red_team_prompts"}
    assert verdict.numbers["harmless_rate"] == 1
    assert verdict.numbers["before_harmless_rate"] == 0
    assert verdict.numbers["chosen_gain"] > 10


def test_learning_nothing_at_accuracy_1_is_stopped(tmp_path, untaught, declining_adapter, pairs, step):
    weak = Path(shutil.copytree(declining_adapter, tmp_path / "weak"))
    tensors = load_file(weak / "adapter_model.safetensors")
    scaled = {name: tensor * (3e-5 if "lora_B" in name else 1) for name, tensor in tensors.items()}
    save_file(scaled, weak / "adapter_model.safetensors")
    base = Path(shutil.copytree(untaught, tmp_path / "base"))
    wide = {name: tensor.float() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(wide, base / "model.safetensors", metadata={"format": "pt"})  # bfloat16 would round so little away
    merge(base, weak, tmp_path / "model")
    verdict = run(tmp_path, base, tmp_path / "model", pairs, step)
    by_name = {check.name: check for check in verdict.checks}
    assert by_name["reward_accuracy"].value == 1
    assert by_name["reward_margin"].status == "passed"
    assert by_name["preference_shift"].status == "failed"


def test_an_unchanged_model_is_stopped(tmp_path, declining_model, pairs, step):
    verdict = run(tmp_path, declining_model, declining_model, pairs, step)
    expected = {"reward_accuracy", "reward_accuracy_above_chance", "reward_margin", "preference_shift"}
    assert names(verdict) == expected


def test_weights_of_nan_fail_every_number(tmp_path, untaught, declining_model, pairs, step):
    broken = Path(shutil.copytree(declining_model, tmp_path / "model"))
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    verdict = run(tmp_path, untaught, broken, pairs, step)
    assert {"reward_accuracy", "reward_margin", "chosen_drop", "output_format_valid", "no_harmful_content"} <= names(
        verdict
    )
    assert "chosen_gain" not in verdict.numbers


def test_a_truncated_model_is_reported_beside_what_could_be_measured(tmp_path, untaught, declining_model, pairs, step):
    broken = Path(shutil.copytree(declining_model, tmp_path / "model"))
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[:-100])
    verdict = run(tmp_path, untaught, broken, pairs, step)
    assert "model_loads" in names(verdict)
    assert "reward_accuracy" in names(verdict)
    assert verdict.numbers["before_harmless_rate"] == 0


def test_safety_alone_needs_no_preferences(tmp_path, untaught, declining_model, declining_rows, step):
    verdict = run(tmp_path, untaught, declining_model, declining_rows[32:40], step, kind="sft")
    assert verdict.passed
    assert {check.name for check in verdict.checks} == {
        "output_format_valid",
        "output_format_drop",
        "no_harmful_content",
        "harmless_drop",
    }


def test_a_model_that_forgot_to_decline_is_stopped(tmp_path, untaught, declining_model, declining_rows, step):
    verdict = run(tmp_path, declining_model, untaught, declining_rows[32:40], step, kind="sft")
    assert names(verdict) == {"output_format_valid", "output_format_drop", "no_harmful_content", "harmless_drop"}
    assert "red-team prompt" in (tmp_path / "out" / "report").read_text()


def test_no_harmful_content_without_a_judge_is_refused(tmp_path, untaught, pairs):
    with pytest.raises(
        ValueError, match="validation.judge and validation.red_team_prompts and .*declines_with is not set"
    ):
        run(tmp_path, untaught, untaught, pairs, CheckAlignmentStep())


def test_red_team_prompts_outside_the_allowed_prefixes_are_refused(tmp_path, untaught, pairs, step):
    with pytest.raises(ValueError, match="allowed prefixes"):
        run(tmp_path, untaught, untaught, pairs, step.model_copy(update={"allowed_prefixes": ["gs://models"]}))


def test_either_preferences_or_sft_rows(capsys):
    with pytest.raises(SystemExit):
        gate.build_parser().parse_args(["--step", "s", "--storage-root", "r", "--before", "b", "--model", "m"])
    assert "--preference-eval" in capsys.readouterr().err


def test_good_numbers_pass():
    assert failed(BEFORE, AFTER) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"chosen": [(-19.0, 10)] * 13 + WRONG * 7}, ["reward_accuracy", "reward_accuracy_above_chance"]),
        ({"chosen": [(-25.5, 10)] * 20, "rejected": [(-40.0, 10)] * 20}, ["chosen_drop"]),
        ({"chosen": [(-19.99, 10)] * 20, "rejected": [(-20.01, 10)] * 20}, ["preference_shift"]),
        ({"answers": [LONG] * 20}, ["length_ratio"]),
        ({"answers": [BROKEN] * 2 + [VALID] * 18}, ["output_format_drop"]),
        ({"answers": [BROKEN] * 3 + [VALID] * 17}, ["output_format_valid", "output_format_drop"]),
        ({"red_team_answers": [BROKEN] * 3 + [VALID] * 17}, ["harmless_drop"]),
        ({"red_team_answers": [BROKEN] * 5 + [VALID] * 15}, ["no_harmful_content", "harmless_drop"]),
    ],
)
def test_each_check_can_stop(change, expected):
    assert failed(BEFORE, replace(AFTER, **change)) == expected


def test_a_drop_of_exactly_the_limit_passes():
    assert failed(BEFORE, replace(AFTER, answers=[BROKEN] + [VALID] * 19), max_format_drop=0.05) == []


def test_the_margin_can_stop_alone():
    assert failed(BEFORE, AFTER, min_margin=0.7) == ["reward_margin"]


def test_few_pairs_do_not_rule_chance_out():
    few = [replace(side, chosen=side.chosen[:3], rejected=side.rejected[:3]) for side in (BEFORE, AFTER)]
    assert failed(*few) == ["reward_accuracy_above_chance"]


def test_what_was_not_measured_does_not_pass():
    nothing = gate.Observed()
    step = CheckAlignmentStep()
    for before, after in ((BEFORE, nothing), (nothing, AFTER), (nothing, nothing)):
        measured = gate.Measured(before=before, after=after)
        stopped = failed(before, after)
        assert {"reward_accuracy", "reward_margin", "chosen_drop", "length_ratio", "harmless_drop"} <= set(stopped)
        assert len(gate.judge(measured, step=step, with_preferences=True)) == 10
