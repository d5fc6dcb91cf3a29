import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.rows.formats import read_jsonl, write_jsonl
from posttrain.step import digests, records
from posttrain.step.run import Unfinished, run_id
from posttrain.train import ends, torchrun
from posttrain.train.torchrun import Ending

pytestmark = pytest.mark.long

COMMAND = ["tests.posttrain.train.rank_that_ends"]


def run(way: str, folder: Path) -> None:
    torchrun.run([*COMMAND, way, str(folder)], num_ranks=2, fingerprint="f" * 64)


def wait_for(condition: Callable[[], bool], *, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def facts(folder: Path) -> list[list[str]]:
    """Reads for each rank that has started its pid, when the stage started, and the fingerprint."""
    return [words for path in folder.glob("rank-*") if (words := path.read_text().split())]


def test_every_rank_knows_what_its_stage_knows(tmp_path):
    run("works", tmp_path)
    assert [words[1:] for words in facts(tmp_path)] == [[str(ends.STARTED), "f" * 64]] * 2


@pytest.mark.parametrize(
    ("way", "error", "words"),
    [
        ("leaves", Unfinished, "^stopped at step 4/6: the deadline is near$"),
        ("breaks", RuntimeError, "^rank 0: KeyError: 'loss'; torchrun exited with 1"),
        ("is killed", RuntimeError, "^rank 1: RuntimeError: the peer is gone; rank 0 died without an error; torchrun"),
    ],
)
def test_a_stage_ends_as_its_first_rank_that_ends(tmp_path, way, error, words):
    with pytest.raises(error, match=words):
        run(way, tmp_path)


def test_sigterm_reaches_every_rank(tmp_path):
    def send_sigterm() -> None:
        wait_for(lambda: len(facts(tmp_path)) == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=send_sigterm, daemon=True).start()
    with pytest.raises(Unfinished, match="^stopped at step 4/6: SIGTERM$"):
        run("waits", tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


def test_ranks_do_not_outlive_a_stage_that_is_killed(tmp_path):
    call = f"torchrun.run({[*COMMAND, 'waits', str(tmp_path)]}, num_ranks=2, fingerprint='')"
    stage = subprocess.Popen([sys.executable, "-c", f"from posttrain.train import torchrun; {call}"])
    wait_for(lambda: len(facts(tmp_path)) == 2)
    stage.kill()
    stage.wait()
    pids = [int(words[0]) for words in facts(tmp_path)]
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), seconds=10)


@pytest.mark.parametrize(
    ("errors", "got_signal", "expected"),
    [
        ([None, None], True, "None"),  # they were done before the signal came
        ([None], True, "Unfinished"),  # one had not begun to listen to signals
        (["RuntimeError", "RuntimeError"], True, "Unfinished"),
        (["Diverged", "RuntimeError"], True, "Diverged"),
        (["ValueError", "RuntimeError"], False, "ValueError"),
        ([], False, "RuntimeError"),
    ],
)
def test_what_counts_of_several_ends(errors, got_signal, expected):
    endings = [Ending(rank=rank, at=rank, error=error, message="x") for rank, error in enumerate(errors)]
    cause = torchrun._cause(endings, num_ranks=2, exit_code=1, got_signal=got_signal)
    assert type(cause).__name__.replace("NoneType", "None") == expected


def test_a_stage_in_two_ranks_is_recorded_once(tiny_model, task_api_files, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", read_jsonl(task_api_files / "sft.jsonl")[:16])
    settings = {"max_seq_length": 256, "lora_r": 4, "batch_size": 2, "gradient_accumulation": 2, "epochs": 1}
    config = {"sft": settings | {"save_steps": 2}, "training": {"num_processes": 2}}
    paths = {"base": tiny_model, "train": tmp_path / "train.jsonl", "eval": task_api_files / "eval.jsonl"}
    paths |= {name: tmp_path / "out" / name for name in ("adapter", "metrics", "curve", "logs")}
    flags = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
    common = ["--step", "train_sft", "--storage-root", str(tmp_path / "store"), "--config", json.dumps(config)]

    done = subprocess.run([sys.executable, "-m", "posttrain.sft", *common, *flags], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0 and done.stderr.count("step 4/4 loss") == 1, done.stderr
    (entry,) = records.read_records(str(tmp_path / "store"), run_id())
    assert entry.status == "succeeded" and entry.config["num_processes"] == 2
    assert entry.measured == json.loads((tmp_path / "out" / "metrics").read_text())
    assert entry.outputs["adapter"] == digests.digest(tmp_path / "out" / "adapter")
    kept = tmp_path / "store" / "checkpoints" / "train_sft" / entry.fingerprint
    assert [len(list(kept.glob(f"step-*/*/rng_state_{rank}.pth"))) for rank in (0, 1)] == [2, 2]
