"""The demo: fetches model and data, runs the whole line, and shows what SFT and DPO changed on held-out questions.

    python -m examples.function_calling.run

In:  the three wheels that `prepare` fetches, pipeline_config.yaml beside this file.
Out: the line's own result, then the table base -> SFT -> aligned. Exit code: that of run_pipeline.py.
"""

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import run_pipeline
from examples.function_calling.prepare import prepare
from posttrain import storage
from posttrain.config import load_config
from posttrain.step import records
from runner.exit_codes import PROMOTED
from runner.local import ALLOCATOR

CONFIG = Path(__file__).with_name("pipeline_config.yaml")
DATA = Path("build/function_calling")


def main() -> int:
    prepare(DATA)
    run_id = f"{datetime.now():%Y%m%d-%H%M%S}"
    exit_code = run_pipeline.main(["--config", str(CONFIG), "--run-id", run_id])
    if exit_code == PROMOTED:
        print("\nNow base, SFT and aligned model answer the held-out questions.", flush=True)
        compare(models_of(str(Path(load_config(CONFIG).storage_root).absolute()), run_id))
    return exit_code


def models_of(storage_root: str, run_id: str) -> dict[str, str]:
    """Folders of the three models, by the results that the run's record names."""
    merges = {entry.step: entry for entry in records.read_records(storage_root, run_id)}
    folders = {"base": str(DATA / "base")}
    for name, step in (("SFT", "merge_sft"), ("aligned", "merge_dpo")):
        folders[name] = storage.join(storage_root, merges[step].kept, "model")
    return folders


def compare(models: dict[str, str]) -> None:
    """Prints the table, in a process of its own that gets its memory settings before it starts."""
    named = [part for name, folder in models.items() for part in ("--model", f"{name}={folder}")]
    command = [sys.executable, "-m", "examples.function_calling.evaluate", "--heldout", str(DATA / "heldout.jsonl")]
    subprocess.run([*command, *named], env=ALLOCATOR | os.environ, check=True)


if __name__ == "__main__":
    sys.exit(main())
