"""Tests what a run will cost, by a few measured steps."""

from io import StringIO

import pytest

import run_pipeline
from posttrain.config import CheckAlignmentStep, CheckSftStep, SftConfig, SftStep
from posttrain.step.records import recent_records
from runner import estimate, timing
from runner.estimate import Line, Reading
from runner.timing import Lap, TimedTraining
from tests.tiny_line import write_line

FACTOR = 4  # within which the estimated time is of what the run takes, on a machine that others use too
MEMORY_FACTOR = 1.5

LAP = {"begin": 0.5, "save": 0.25}
TIMED = TimedTraining(
    num_rows=100,
    num_eval_rows=20,
    num_tokens=1000,
    imports=3.0,
    longest=Lap(num_rows=5, num_eval_rows=1, setup=2.0, step=9.0, finish=1.0, **LAP),
    typical=Lap(num_rows=25, num_eval_rows=5, setup=4.0, step=1.5, finish=1.4, **LAP),
    memory=10**9,
)


def test_what_is_done_once_for_each_row_and_for_each_step_adds_up():
    # 3 imports, 4 + 0.1 * (120 - 25) setup, 0.5 begin, 40 * 1.5 steps, 2 * 0.25 saves, 1.4 + 0.1 * (30 - 5) evaluations
    expected = 3 + 13.5 + 0.5 + 60 + 0.5 + 3.9
    assert TIMED.seconds(num_steps=40, num_saves=2, num_evaluated=30) == pytest.approx(expected)


def test_a_training_is_counted_as_its_trainer_does():
    config = SftConfig(epochs=3, batch_size=2, gradient_accumulation=4, save_steps=10)
    line = estimate.training_line("train_sft", SftStep(sft=config), TIMED)
    assert line.what == "100 rows, 3 passes, 39 steps"  # 13 steps a pass, the last one with 4 rows
    assert line.num_tokens == 3000
    # Four checkpoints; 3 evaluations on the way, of 10 rows each: a twentieth of the time.
    assert line.seconds == TIMED.seconds(num_steps=39, num_saves=4, num_evaluated=20 + 3 * 10)


def test_rows_are_of_every_length_or_the_longest():
    ordered = {"train": list(range(100)), "eval": list(range(50))}
    config = SftConfig(batch_size=2, gradient_accumulation=5, epochs=3)
    longest, typical = timing.longest_rows(config, ordered), timing.typical_rows(config, ordered)
    assert (longest.rows, longest.config.epochs) == ({"train": [98, 99], "eval": [49]}, 1)
    assert longest.config.gradient_accumulation == 1
    assert (len(typical.rows["train"]), sum(typical.rows["train"]) / 40) == (40, pytest.approx(49.5, abs=0.5))
    assert (len(typical.rows["eval"]), typical.config.epochs) == (32, 1)
    few = timing.typical_rows(config, {name: rows[:15] for name, rows in ordered.items()})
    assert (few.rows["train"], few.config.epochs) == (list(range(15)), 3)  # 2 steps a pass


def test_pairs_that_will_be_sampled_are_one_for_each_prompt_at_most():
    rows = [
        {"id": str(at), "prompt": [{"role": "user", "content": f"q{at // 2}"}], "completion": [{"content": str(at)}]}
        for at in range(6)
    ]
    pairs = estimate.sampled(rows, None)
    assert [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in pairs] == [
        ("1", "3"), ("3", "5"), ("5", "1"),
    ]  # fmt: skip
    assert len(estimate.sampled(rows, 2)) == 2


def test_the_table_has_rows_tokens_time_and_memory_of_each_step():
    stream = StringIO()
    estimate.print_lines([Line("train_sft", "8 rows", 1234, 90, 2 * 10**9), Line("g", "2 answers", 5, 30, 1)], stream)
    lines = stream.getvalue().splitlines()
    assert next(line for line in lines if "train_sft" in line).split("  ")[-1].strip() == "2 GB"
    assert "8 rows" in stream.getvalue() and "1,234" in stream.getvalue() and "1 min 30 s" in stream.getvalue()
    assert "Total: about 2 min 00 s, with one process on this machine." in lines
    stream = StringIO()
    estimate.print_lines([Line("train_sft", "8 rows", 1234, 7200, 2 * 10**9, 40 * 10**9)], stream)
    assert "40 GB" in stream.getvalue() and "and 2 GPU hours" in stream.getvalue()


@pytest.mark.parametrize("other", [["--endpoint", "http://k"], ["--sweep", "s.yaml"], ["--run-id", "a"]])
def test_a_flag_that_an_estimate_would_ignore_is_an_error(other, capsys):
    with pytest.raises(SystemExit):
        run_pipeline.parse_args(["--estimate", *other])
    assert "--estimate measures one run on this machine" in capsys.readouterr().err


def test_answers_are_counted_by_the_prompts_that_a_gate_asks():
    row = {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}
    rows = [row | {"prompt": [{"role": "user", "content": str(at)}]} for at in range(10)]
    reading = Reading({"sft": {"train": rows, "eval": rows[:6]}}, {"red_team_prompts": 5, "off_topic_prompts": 3})
    sft, alignment = CheckSftStep(), CheckAlignmentStep()
    skills = 2 * len(alignment.validation.suites) * alignment.validation.skill_rows
    assert estimate.num_answers("check_sft", sft, reading) == 12
    assert estimate.num_answers("check_safety", alignment, reading) == 2 * 6 + 2 * 5 + 3 + skills
    assert estimate.num_answers("check_data", sft, reading) == 0


@pytest.mark.long
def test_the_estimate_is_near_what_the_run_takes(tmp_path, taught_model, capsys):
    argv = ["--config", str(write_line(tmp_path, taught_model))]
    assert run_pipeline.main([*argv, "--estimate"]) == 0
    printed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert not list((tmp_path / "root").rglob("record*.json"))  # it ran nothing
    assert run_pipeline.main(argv) in (0, 2)
    took = {one.step: one for one in recent_records(str(tmp_path / "root")) if one.status == "succeeded"}
    for step in ("train_sft", "train_dpo"):
        seconds = took[step].seconds
        estimated = seconds_in(printed[step])
        assert seconds / FACTOR < estimated < seconds * FACTOR, (step, estimated, seconds)
        memory = float(printed[step].split()[-2]) * 1e9
        assert took[step].peak_memory / MEMORY_FACTOR < memory < took[step].peak_memory * MEMORY_FACTOR, memory
        assert took[step].measured["total_steps"] == int(printed[step].split(" steps")[0].split()[-1])


def seconds_in(line: str) -> float:
    """Reads the time of a line of the table."""
    words = line.split(" steps")[1].split()[1:-2]
    units = {"s": 1, "min": 60, "h": 3600}
    return sum(float(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
