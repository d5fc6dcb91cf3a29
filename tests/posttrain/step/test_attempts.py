"""Tests which ends of a step are tried again in its container, on processes that end so."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from posttrain.config import ATTEMPTS_ENV, HALVINGS_ENV, RUN_ID_ENV, STARTED_ENV
from posttrain.step import attempts, records
from posttrain.step.kfp_io import remove_outputs
from posttrain.train.checkpoints import Checkpoints

# Ends as its plan says for each attempt, and leaves a note of it.
STEP = """
import json, os, pathlib, signal, sys, time
from posttrain.step.run import Unfinished
from posttrain.train.checkpoints import Diverged
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
notes = pathlib.Path(flags["--notes"])
plan = flags["--plan"].split(",")[len(list(notes.iterdir()))]
note = notes / f"{len(list(notes.iterdir())) + 1}.json"
note.write_text(json.dumps(dict(os.environ)))
if plan == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if plan == "hangs":
    time.sleep(60)
if plan == "saves":
    def leave(*_):
        raise Unfinished("stopped at step 4/6: SIGTERM; the next attempt resumes from step 4")
    signal.signal(signal.SIGTERM, leave)
    print("ready", flush=True)
    time.sleep(60)
if plan != "done":
    raise eval(plan)
"""
COMMAND = [sys.executable, "-m", "posttrain.step.attempts", "misbehaves"]


@pytest.fixture
def command(tmp_path):
    """Returns the command, environment and notes of a step in attempts, for a plan of one end for each of them."""
    (tmp_path / "misbehaves.py").write_text(STEP)
    (tmp_path / "notes").mkdir()

    def build(plan: str, limits: str) -> tuple[list[str], dict[str, str]]:
        flags = {"--step": "train_sft", "--storage-root": str(tmp_path / "root"), "--plan": plan,
                 "--notes": str(tmp_path / "notes")}  # fmt: skip
        environment = {ATTEMPTS_ENV: limits, RUN_ID_ENV: "run-1", "PYTHONPATH": str(tmp_path)}
        return [*COMMAND, *(part for flag in flags.items() for part in flag)], os.environ | environment

    return build


@pytest.fixture
def run(command, tmp_path):
    """Runs a step and returns its exit code, its stderr and the environments of its attempts."""

    def run(plan: str, limits: str = "3 0 0") -> tuple[int, str, list[dict]]:
        argv, environment = command(plan, limits)
        ended = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
        notes = sorted((tmp_path / "notes").iterdir())
        return ended.returncode, ended.stderr, [json.loads(note.read_text()) for note in notes]

    return run


@pytest.mark.parametrize(
    "end",
    ["Unfinished('stopped')", "ConnectionError('storage is away')", "RuntimeError('CUDA error: 700')", "killed"],
)
def test_an_end_that_another_attempt_mends_is_tried_again(run, end):
    exit_code, stderr, environments = run(f"{end},{end},done")
    assert (exit_code, len(environments)) == (0, 3)
    assert "attempt 2 of 3" in stderr and "attempt 3 of 3" in stderr
    assert not any(ATTEMPTS_ENV in environment for environment in environments)  # children of a step make none


@pytest.mark.parametrize(
    "end", ["ValueError('row 3')", "Diverged('loss nan')", "FileNotFoundError('rows')", "KeyError('loss')"]
)
def test_an_end_that_would_be_the_same_again_is_not(run, end):
    exit_code, stderr, environments = run(f"{end},done")
    assert (exit_code, len(environments)) == (1, 1)
    assert stderr.splitlines()[-1].split(": ")[0].endswith(end.split("(")[0])


def test_the_attempts_are_limited_and_the_last_line_says_how_they_ended(run):
    exit_code, stderr, environments = run("killed,killed,done", "2 0 0")
    assert (exit_code, len(environments)) == (1, 2)
    assert stderr.splitlines()[-1] == "2 attempts failed; the last one: ended by SIGKILL (out of memory?)"
    exit_code, stderr, environments = run("-,-,Unfinished('stopped')", "1 0 0")
    assert (exit_code, len(environments)) == (75, 3)


def test_after_running_out_of_memory_the_batch_is_halved(run):
    _, stderr, environments = run("MemoryError(),RuntimeError('CUDA error: out of memory'),done")
    assert [environment[HALVINGS_ENV] for environment in environments] == ["0", "1", "2"]
    assert "attempt 3 of 3, with the batch size halved 2 times: " in stderr


def test_an_attempt_that_hangs_is_ended_and_the_next_has_a_clock_of_its_own(run):
    exit_code, stderr, environments = run("hangs,done", "2 1 0")
    assert (exit_code, len(environments)) == (0, 2)
    assert "attempt 2 of 2: ended when its time was up, after 0.0167 min" in stderr
    first, second = (float(environment[STARTED_ENV]) for environment in environments)
    assert second - first >= 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])  # Argo and the local runner; a closed terminal
def test_a_signal_reaches_the_child_at_once_and_nothing_is_tried_again(command, tmp_path, number):
    argv, environment = command("saves,done", "3 0 0")
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout.readline() == b"ready\n"
    began = time.monotonic()
    os.killpg(process.pid, number)
    assert process.wait(30) == 75
    assert time.monotonic() - began < 5
    process.stdout.close()
    assert len(list((tmp_path / "notes").iterdir())) == 1


def test_a_child_ends_with_the_process_that_makes_the_attempts(command, tmp_path):
    argv, environment = command("saves", "1 0 0")
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    process.wait()
    assert process.stdout.read() == b""  # once nobody holds the other end
    process.stdout.close()


def record(number: int, status: str) -> records.StepRecord:
    return records.StepRecord(
        step="train_sft", attempt=number, run_id="run-1", status=status, seconds=0.0, fingerprint="f", config={},
        started_at=datetime.now(UTC).isoformat(), inputs={}, outputs={}, measured={},
    )  # fmt: skip


def test_a_killed_attempt_is_recorded_and_earlier_containers_count(run, tmp_path):
    root = str(tmp_path / "root")
    for number in (1, 2):
        records.write_record(root, record(number, "running"))
    (tmp_path / "weights.pt").write_text("w")
    checkpoints = Checkpoints(root, "train_sft", "f", run_id="run-1", limit=1)
    (tmp_path / "checkpoint").mkdir()
    checkpoints.publish(tmp_path / "checkpoint", step=1734)

    _, stderr, environments = run("killed,killed,done")
    assert "attempt 3 of 3, from step 1734: ended by SIGKILL" in stderr
    assert len(environments) == 2  # two attempts were made before, the second of which ended here
    last = records.read_records(root, "run-1")[-1]
    assert (last.attempt, last.status, last.error) == (2, "failed", "ended by SIGKILL (out of memory?)")


def test_an_attempt_starts_with_empty_folders(tmp_path):
    folder = tmp_path / "out"
    (folder / "model.partial").mkdir(parents=True)
    for name in ("model.partial/weights", "row", "output.json", "tmp123"):
        (folder / name).write_text("half")
    outputs = {
        "artifacts": {"model": {"artifacts": [{"uri": str(folder / "model")}]}},
        "parameters": {"row": {"outputFile": str(folder / "row")}},
        "outputFile": str(folder / "output.json"),
    }
    remove_outputs(json.dumps({"outputs": outputs}))
    assert list(folder.iterdir()) == []
    remove_outputs("{}")  # a step that is run by hand


def test_the_clock_of_a_pod_starts_with_its_container(tmp_path, monkeypatch):
    stat = tmp_path / "stat"
    boot, ticks = time.clock_gettime(time.CLOCK_BOOTTIME), os.sysconf("SC_CLK_TCK")
    stat.write_text(f"1 (argo exec) S {' '.join('0' * 18)} {int((boot - 90) * ticks)} 0 0")
    assert time.monotonic() - attempts.container_start(stat) == pytest.approx(0, abs=1)
    monkeypatch.setenv(attempts.POD_ENV, "pod-1")
    assert time.monotonic() - attempts.container_start(stat) == pytest.approx(90, abs=1)


def test_memory_that_the_kernel_took_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "MEMORY_EVENTS", tmp_path / "memory.events")
    assert attempts.num_killed_for_memory() == 0
    (tmp_path / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert attempts.num_killed_for_memory() == 2


@pytest.mark.parametrize(
    ("ended", "number", "said"),
    [
        (attempts.Ended(attempts.UNAVAILABLE), 1, ""),
        (attempts.Ended(attempts.UNAVAILABLE), 2, "2 attempts failed; the last one: no bucket\n"),
        (attempts.Ended(-signal.SIGKILL), 1, "no bucket\n"),
        (attempts.Ended(1), 2, ""),
    ],
)
def test_what_a_child_has_said_itself_is_not_said_again(ended, number, said, capsys):
    assert attempts.give_up(ended, number, "no bucket") == 1
    assert capsys.readouterr().err == said


def test_without_a_limit_of_attempts_the_process_becomes_the_step(monkeypatch):
    monkeypatch.delenv(ATTEMPTS_ENV, raising=False)
    monkeypatch.setattr(attempts.become, "run", sys.exit)
    with pytest.raises(SystemExit) as ended:
        attempts.main(["posttrain.sft", "--step"])
    assert ended.value.code == ["posttrain.sft", "--step"]
