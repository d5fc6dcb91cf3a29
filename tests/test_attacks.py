"""The whole line on a tiny model, after somebody has tampered with what it reads: how its next run ends."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_line import write_line

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def line(tmp_path_factory, taught_model) -> Path:
    """A folder with data, a configuration and a promoted run. The tests change it, each something else."""
    folder = tmp_path_factory.mktemp("line")
    write_line(folder, taught_model)
    promoted = run(folder, "--run-id", "first")
    assert promoted.returncode == 0, promoted.stdout + promoted.stderr
    return folder


def run(line: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "run_pipeline.py", "--config", str(line / "pipeline.yaml"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=280
    )


def test_records_that_somebody_brings_along_publish_nothing(line, tmp_path):
    """They would be of gates that passed: here they are those of a run that was promoted."""
    mine = shutil.copytree(line / "root", line / "mine")
    ended = run(line, "--storage-root", str(mine), "--set", f"publish_root={tmp_path / 'official'}")
    assert ended.returncode == 1
    assert "is not a storage root that this graph was compiled for" in ended.stderr
    assert not (tmp_path / "official").exists()


def test_a_secret_that_the_base_model_links_to_goes_nowhere(line, taught_model, tmp_path):
    base = shutil.copytree(taught_model, line / "linked")
    (tmp_path / "token").write_text("s3cret of this machine")
    (base / "NOTICE").symlink_to(tmp_path / "token")
    ended = run(line, "--run-id", "linked", "--base-model", str(base))
    assert ended.returncode == 1
    assert "NOTICE: is a link that leads out of" in ended.stdout + ended.stderr
    files = (file for file in (line / "root").rglob("*") if file.is_file())
    assert not [file for file in files if b"s3cret of this machine" in file.read_bytes()]


def test_damaged_and_stray_files_of_earlier_runs_do_not_end_the_next(line):
    root = line / "root"
    shutil.copytree(root / "runs" / "first", root / "runs" / "killed")
    (root / "runs" / "killed" / "RUNNING").write_text("garbage")
    (root / "runs" / "killed" / "notes.1.json").write_text("{}")
    (root / "runs" / "first" / "train_sft.1.json").write_text("")
    (receipt,) = root.glob("results/merge_dpo/*/COMPLETE.json")
    receipt.write_text("")
    ended = run(line, "--run-id", "stray")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert receipt.read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
def test_a_full_disk_under_the_logs_ends_no_run(line):
    logs = line / "root" / "runs" / "full" / "logs"
    logs.mkdir(parents=True)
    (logs / "check_alignment.log").symlink_to("/dev/full")
    ended = run(line, "--run-id", "full")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "check_alignment.log: lines are missing: No space left on device" in ended.stderr


def test_a_published_model_that_was_changed_is_not_published_again(line):
    (manifest,) = (line / "root" / "published").rglob("manifest.json")
    weights = manifest.with_name("model.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (manifest.parent / "modeling_x.py").write_text("import os")
    ended = run(line, "--run-id", "changed")
    assert ended.returncode == 1
    for words in ("model.safetensors: was changed", "modeling_x.py: was added"):
        assert words in ended.stdout + ended.stderr
