"""Files in a run's record: in which order they are read, and what happens to those that are none."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from posttrain.step.progress import LEASE_SECONDS
from posttrain.step.provenance import trace
from posttrain.step.records import StepRecord, read_records, recent_records, replace_record, write_record
from tests.posttrain.step.test_provenance import END


def record(root: Path, *, step: str = "check_merge", started_at: str = "2026-01-01T12:00", **more) -> StepRecord:
    values = {"config": {}, "inputs": {"m": "aligned"}, "outputs": {"verdict": "v"}, "measured": {}, "seconds": 1.0}
    values |= {"run_id": "r", "status": "succeeded", "attempt": 1, "fingerprint": "f"} | more
    return write_record(str(root), StepRecord(step=step, started_at=started_at, **values))


STATUSES = {"merge": "succeeded", "check_merge": "failed", "train": "unfinished", "publish": "running"}
STRAY = {"check_merge.2.json": "", "notes.1.json": "{}", "check_data.1.json": "[1"}


@pytest.mark.parametrize("name", STRAY)
def test_a_file_that_is_no_record_is_left_out_with_a_warning_but_proves_nothing(name, tmp_path, caplog):
    record(tmp_path)
    Path(tmp_path, "runs/r", name).write_text(STRAY[name])
    assert [done.step for done in read_records(str(tmp_path), "r")] == ["check_merge"]
    assert f"skipped: {tmp_path}/runs/r/{name}: is not a record" in caplog.text
    with pytest.raises(ValueError, match=rf"{name}: is not a record: .*; remove it, and run again what it recorded"):
        read_records(str(tmp_path), "r", is_proof=True)


@pytest.mark.parametrize("change", [{"step": "check_data"}, {"attempt": 2}, {"run_id": "another"}])
def test_a_record_under_another_name_or_of_another_run_is_none(change, tmp_path):
    record(tmp_path)
    file = Path(tmp_path, "runs/r/check_merge.1.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert read_records(str(tmp_path), "r") == []
    with pytest.raises(ValueError, match=r"check_merge\.1\.json: is the record .* of run "):
        read_records(str(tmp_path), "r", is_proof=True)


def test_attempts_are_in_the_order_of_their_numbers_whatever_the_clocks_say(tmp_path):
    record(tmp_path, verdict={"passed": True})
    record(tmp_path, step="merge", outputs={"m": "aligned"}, started_at="2026-01-01T11:30")
    record(tmp_path, verdict={"passed": False}, started_at="2026-01-01T11:00")  # judged again, by a slow clock
    records = read_records(str(tmp_path), "r")
    assert [(done.step, done.attempt) for done in records] == [("merge", 1), ("check_merge", 1), ("check_merge", 2)]
    for order in (records, records[::-1]):
        (gate,) = (link for link in trace(order, run_id="r", end=END).links if link.verdict)
        assert gate.verdict == {"passed": False}


def test_a_record_holds_no_secret(tmp_path):
    secret = "hf_" + "a1" * 17
    record(tmp_path, error=f"401 for {secret}", measured={"source": f"https://me:{secret}@host"})
    assert secret not in Path(tmp_path, "runs/r/check_merge.1.json").read_text()


def test_only_records_of_the_steps_that_are_asked_for_are_read(tmp_path):
    for step in ("merge", "check_merge"):
        record(tmp_path, step=step)
    Path(tmp_path, "runs/r/check_merge.1.json.bak").write_text("kept by somebody")
    assert [done.step for done in read_records(str(tmp_path), "r", of={"merge"}, is_proof=True)] == ["merge"]
    assert read_records(str(tmp_path), "r", of=set()) == []
    assert {done.step for done in read_records(str(tmp_path), "r", is_proof=True)} == {"merge", "check_merge"}


def test_a_record_is_replaced_whole_and_without_secrets(tmp_path):
    first = record(tmp_path)
    replace_record(str(tmp_path), first.model_copy(update={"status": "failed", "error": "no hf_" + "a1" * 17}))
    (last,) = read_records(str(tmp_path), "r", is_proof=True)
    assert (last.status, last.error, last.work_seconds, last.cpu_seconds, last.peak_memory) == (
        "failed",
        "no ***",
        0,
        0,
        0,
    )


@pytest.mark.parametrize(
    ("status", "age", "is_alive"), [("running", 0, True), ("running", LEASE_SECONDS, False), ("succeeded", 0, False)]
)
def test_a_step_is_alive_while_its_record_is_renewed(status, age, is_alive, tmp_path):
    started = datetime.now(UTC) - timedelta(seconds=30 + age)
    assert record(tmp_path, status=status, started_at=started.isoformat(), seconds=30.0).is_alive is is_alive


def test_the_record_of_an_attempt_that_is_over_is_read_once(tmp_path):
    ended = {record(tmp_path, step=step, status=status).step: status for step, status in STATUSES.items()}
    known = {}
    for _ in range(2):
        assert {one.step: one.status for one in read_records(str(tmp_path), "r", ended=known)} == ended
        assert known.keys() == {f"{step}.1.json" for step, status in ended.items() if status != "running"}
        Path(tmp_path, "runs/r/merge.1.json").write_text("changed since")


def test_the_records_of_the_newest_runs_are_read_in_the_order_in_which_their_steps_started(tmp_path):
    for number in range(22):
        record(tmp_path, run_id=f"r{number:02}", started_at=f"2026-01-01T{23 - number:02}:00")
    Path(tmp_path, "runs", "z").mkdir()
    Path(tmp_path, "runs", "z", "merge.1.json.bak").write_text("a run's files without a record")
    assert [one.run_id for one in recent_records(str(tmp_path))] == [f"r{number:02}" for number in range(21, 1, -1)]
