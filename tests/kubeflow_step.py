"""A step for the tests of `tests.kubeflow_pods`: writes a line per attempt, and ends as its plan says."""

import signal
import sys
import time
from pathlib import Path

flags = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
attempts = Path(flags["--folder"], flags["--step"])


def note(word: str) -> None:
    with attempts.open("a") as file:
        file.write(f"{word}\n")


def save(*_) -> None:
    time.sleep(0.5)  # as long as a checkpoint takes
    note("saved")
    sys.exit(75)


signal.signal(signal.SIGTERM, save)
note("attempt")
num_attempts = attempts.read_text().count("attempt")
if flags["--plan"] == "leaves once" and num_attempts == 1:
    sys.exit(75)
if flags["--plan"] == "waits once" and num_attempts == 1:
    time.sleep(60)
Path(flags["--out"]).parent.mkdir(parents=True, exist_ok=True)
Path(flags["--out"]).write_text("{}")
