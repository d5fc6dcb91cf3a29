"""All that can become of a gate: what its measurement gives, and what else happens to it.

name of the outcome -> what the gate's stand-in does and how a run with it must end
"""

import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

HOSTILE = "it's \"fine\"\n}} {{$.outputs}} ' == '' or true\\ </script><b> | `$(exit 0)` \u2028 == true"
LIMIT = 2.0
NUMBERS = {"loss": 0.5}


@dataclass(frozen=True)
class Outcome:
    """`exit_code` is that of run_pipeline: 0 promoted, 2 stopped by a gate, 1 anything else."""

    exit_code: int
    measure: Callable[[], dict[str, Any] | None] = lambda: NUMBERS
    status: str = ""  # of the check that stands for it in the verdict; empty: there is no verdict or it passed
    lies: bool = False  # tells the graph that it has passed: what follows runs, and publishing must refuse

    @property
    def passes(self) -> bool:
        return self.exit_code == 0


def raises() -> None:
    raise RuntimeError(HOSTILE)


def hangs() -> None:
    time.sleep(600)


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def says(loss: float, interval: tuple[float, float] | None = None) -> Callable[[], dict[str, Any]]:
    return lambda: {"loss": loss, "interval": interval}


PASS = "pass"
OUTCOMES = {
    PASS: Outcome(0),
    "fail": Outcome(2, says(9.0), "failed"),
    "undecided": Outcome(2, says(1.9, (1.5, 2.5)), "undecided"),
    "NaN": Outcome(2, says(math.nan), "failed"),
    "infinity": Outcome(2, says(math.inf), "failed"),
    "minus infinity": Outcome(2, says(-math.inf), "failed"),
    "missing number": Outcome(2, dict, "not run"),
    "empty check list": Outcome(1),
    "quotes, newlines, braces": Outcome(2, says(9.0), "failed"),
    "a check raises": Outcome(2, raises, "failed"),
    "a check hangs": Outcome(2, hangs, "timed out"),
    "a check's process is killed": Outcome(2, dies, "failed"),
    "the gate is killed": Outcome(1),
    "the gate is killed after its verdict": Outcome(1),
    "no output file": Outcome(1),
    "its file says true, its verdict failed": Outcome(2, says(9.0), "failed"),
    "it tells true, its verdict failed": Outcome(2, says(9.0), "failed", lies=True),
    "it tells true, without a verdict": Outcome(1, lies=True),
}
