"""A rank without a model, for the tests of torchrun.

python -m tests.posttrain.train.rank_that_ends <way> <folder>
"""

import os
import signal
import sys
import time
from pathlib import Path

from posttrain.step.run import Unfinished
from posttrain.train import ends, ranks, torchrun

ERRORS = {"leaves": Unfinished("stopped at step 4/6: the deadline is near"), "breaks": KeyError("loss")}


def end(way: str, folder: Path) -> None:
    """The first rank ends in this way. The other waits for SIGTERM, as both do where the way is `waits`."""
    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    facts = f"{os.getpid()} {ends.STARTED} {torchrun.read_orders().fingerprint}"
    Path(folder, f"rank-{os.environ['RANK']}").write_text(facts)
    if way == "works":
        return
    while len(list(folder.glob("rank-*"))) < ranks.count():
        time.sleep(0.01)
    if way != "waits" and ranks.is_first():
        if way == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ERRORS[way]
    while not signals:
        time.sleep(0.01)
    raise Unfinished("stopped at step 4/6: SIGTERM") if way == "waits" else RuntimeError("the peer is gone")


if __name__ == "__main__":
    signal.alarm(60)  # whatever happens to the test
    with torchrun.reporting(torchrun.read_orders()):
        end(sys.argv[1], Path(sys.argv[2]))
