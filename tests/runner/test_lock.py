import signal
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.config import ReportStep
from runner import lock
from runner.lock import killed_runs, under_way

SETTINGS = ReportStep(pipeline_id="demo", steps=["fetch_model"])
RUN = """
import sys, time
from pathlib import Path
from runner.lock import under_way
from posttrain.config import ReportStep
with under_way(Path(sys.argv[1]), ReportStep(pipeline_id="demo", steps=["fetch_model"])):
    print("it runs", flush=True)
    time.sleep(60)
"""


def test_a_killed_run_is_given_once(tmp_path):
    (tmp_path / "r1").mkdir()
    process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path / "r1")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "it runs\n"
    assert list(killed_runs(tmp_path)) == []  # it runs
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(killed_runs(tmp_path)) == [("r1", SETTINGS)]
    assert list(killed_runs(tmp_path)) == []


def test_a_run_that_ended_is_not_taken_for_killed(tmp_path: Path):
    with under_way(tmp_path, SETTINGS):
        pass
    assert list(killed_runs(tmp_path.parent)) == []


def test_a_damaged_mark_is_removed_with_a_warning(tmp_path: Path, caplog):
    (tmp_path / "r1").mkdir()
    (tmp_path / "r1" / "RUNNING").write_bytes(b"garbage\xff")
    assert list(killed_runs(tmp_path)) == []
    assert "r1/RUNNING: is damaged, so run r1 gets no report" in caplog.text
    assert not (tmp_path / "r1" / "RUNNING").exists()


def test_a_run_that_ends_meanwhile_is_not_taken_for_killed(tmp_path: Path):
    """Others end while the report of the first is written."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "RUNNING").write_text(SETTINGS.model_dump_json())
    reported = []
    for run_id, _ in killed_runs(tmp_path):
        reported.append(run_id)
        (tmp_path / "b" / "RUNNING").unlink(missing_ok=True)
    assert reported == ["a", "c"]


def test_a_run_that_ended_before_its_lock_was_taken_is_not_taken_for_killed(tmp_path: Path, monkeypatch):
    (tmp_path / "r1").mkdir()
    (tmp_path / "r1" / "RUNNING").write_text(SETTINGS.model_dump_json())
    flock = lock.fcntl.flock

    def ended_first(file, how) -> None:
        (tmp_path / "r1" / "RUNNING").unlink()
        flock(file, how)

    monkeypatch.setattr(lock.fcntl, "flock", ended_first)
    assert list(killed_runs(tmp_path)) == []


def test_a_run_that_starts_is_locked_before_it_is_seen(tmp_path: Path, monkeypatch):
    (tmp_path / "r1").mkdir()
    seen, flock = [], lock.fcntl.flock

    def look(file, how) -> None:
        monkeypatch.setattr(lock.fcntl, "flock", flock)
        seen.extend(killed_runs(tmp_path))
        flock(file, how)

    monkeypatch.setattr(lock.fcntl, "flock", look)
    with under_way(tmp_path / "r1", SETTINGS):
        assert seen == [] and (tmp_path / "r1" / "RUNNING").exists()


def test_an_id_whose_run_is_under_way_is_refused(tmp_path: Path):
    with under_way(tmp_path, SETTINGS):
        with pytest.raises(ValueError, match="is running already; choose another id"), under_way(tmp_path, SETTINGS):
            pytest.fail("it ran")
        assert [path.name for path in tmp_path.iterdir()] == ["RUNNING"]
