"""Runs compared by their records."""

import pytest

from posttrain import compare
from posttrain.step import records
from posttrain.verdict import Verdict, at_most


def keep(root, run_id, step, **changes):
    entry = {
        "step": step, "attempt": 1, "run_id": run_id, "status": "succeeded", "started_at": "2026-01-01T00:00:00+00:00",
        "seconds": 2.0, "cpu_seconds": 3.0, "peak_memory": 10**9, "fingerprint": "f", "config": {}, "inputs": {},
        "outputs": {}, "measured": {},
    }  # fmt: skip
    records.write_record(str(root), records.StepRecord(**entry | changes))


def keep_run(root, run_id, *, rate, loss, limit=1.0):
    check = at_most("held_out_loss", loss, limit, interval=(loss - 0.1, loss + 0.1))
    keep(root, run_id, "train_sft", config={"learning_rate": rate, "lora_r": 8})
    verdict = Verdict(gate="check_sft", subject={}, checks=(check,))
    keep(root, run_id, "check_sft", verdict=verdict.model_dump(mode="json"))


@pytest.fixture
def root(tmp_path):
    keep_run(tmp_path, "one", rate=1e-4, loss=0.5)
    keep_run(tmp_path, "two", rate=2e-4, loss=0.3)
    keep_run(tmp_path, "three", rate=4e-4, loss=2.0)
    keep(tmp_path, "four", "train_sft", status="failed", error="Diverged: at step 3", config={"learning_rate": 1e-2})
    return tmp_path


def test_runs_are_sorted_with_what_differs_their_verdicts_and_their_cost(root):
    comparison = compare.compare(
        str(root), ["one", "two", "three", "four"], objective="check_sft.held_out_loss", sign=1
    )
    rows = [(row.candidate.name, row.place, row.candidate.status) for row in comparison.rows]
    assert rows == [
        ("two", 1, "qualified"),
        ("one", 2, "qualified"),
        ("three", None, "stopped by check_sft"),
        ("four", None, "failed at train_sft"),
    ]
    assert comparison.settings == ["sft.learning_rate", "sft.lora_r"]
    assert comparison.rows[0].candidate.cost.cpu_seconds == 6.0
    assert comparison.rows[1].is_level  # 0.4 is in both intervals


def test_the_cost_is_that_of_all_attempts_and_the_memory_that_of_the_largest(root):
    for attempt, peak in enumerate((3 * 10**9, 2 * 10**9), start=2):
        keep(root, "one", "train_sft", attempt=attempt, peak_memory=peak, status="failed", error="killed")
    cost = compare.candidate_of(str(root), "one", None).cost
    assert (cost.seconds, cost.cpu_seconds, cost.peak_memory) == (8.0, 12.0, 3 * 10**9)


def test_a_run_whose_gates_passed_is_published_if_its_receipt_says_so(root):
    assert compare.candidate_of(str(root), "two", None).reason == "not published"
    (root / "manifest.json").write_text('{"sha256": "s"}')
    receipt = {"uri": "u", "manifest_uri": str(root / "manifest.json"), "sha256": "s"}
    keep(root, "two", "publish_model", measured=receipt)
    assert compare.candidate_of(str(root), "two", None).reason == "published"


def test_the_command_prints_and_writes_the_table(root, tmp_path, capsys):
    files = [f"--{form}={tmp_path / form}" for form in ("markdown", "html", "csv")]
    assert compare.main(["one", "three", "--storage-root", str(root), *files]) == 0
    text = capsys.readouterr().out
    assert text.startswith("1 of 2 passed all their gates")
    assert "three: held_out_loss: 2, not <= 1" in text
    assert "check\\_sft.held\\_out\\_loss" in (tmp_path / "markdown").read_text()
    assert "0.5 (0.4 to 0.6)" in (tmp_path / "html").read_text()
    assert "learning_rate" in (tmp_path / "csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone"], "gone: no such run in"),
        (["one", "--objective", "check_sft.los"], "measured were check_sft.held_out"),
    ],
)
def test_bad_input_is_one_line(root, capsys, arguments, words):
    assert compare.main([*arguments, "--storage-root", str(root)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
