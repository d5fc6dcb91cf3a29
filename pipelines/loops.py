"""Runs the iterations of a loop on this machine: as many side by side as the graph allows and its memory holds.

iterations -> their outputs

The first runs alone. What it has held at its peak is then set against what the machine has available: measured, not
guessed. kfp.local's own would run two at once whatever they need, and could not be interrupted.
"""

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from kfp.local.status import Status

MEMINFO = Path("/proc/meminfo")  # of Linux; elsewhere iterations run one after the other
HEADROOM = 1.15  # on the peak that was measured: the next trial may be a larger one

Outputs = tuple[dict[str, Any], Status]
Iteration = Callable[[], Outputs]


def run_iterations(
    iterations: dict[str, Iteration], *, num_at_once: Callable[[], int], end_running: Callable[[], None]
) -> tuple[dict[str, dict[str, Any]], Status]:
    """The outputs of each iteration by its name. After one that fails no other is begun.

    Args:
        num_at_once: asked when the first has ended.
        end_running: called when this thread is interrupted, while others run iterations.
    """
    (first, iteration), *others = iterations.items()
    outputs, status = iteration()
    found = {first: outputs}
    num = num_at_once() if others else 1
    if num == 1:
        for name, iteration in others if status == Status.SUCCESS else []:
            found[name], status = iteration()
            if status == Status.FAILURE:
                break
    elif status == Status.SUCCESS:
        status = _side_by_side(dict(others), num, found, end_running)
    return (found, status) if status == Status.SUCCESS else ({}, status)


def _side_by_side(
    iterations: dict[str, Iteration], num: int, found: dict[str, dict[str, Any]], end_running: Callable[[], None]
) -> Status:
    status = Status.SUCCESS
    with ThreadPoolExecutor(num, thread_name_prefix="iteration") as pool:
        futures = {pool.submit(iteration): name for name, iteration in iterations.items()}
        try:
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                found[futures[future]], ended = future.result()
                if ended == Status.FAILURE:
                    status = ended
                    _cancel(futures)
        except BaseException:
            _cancel(futures)
            end_running()
            raise
    return status


def _cancel(futures) -> None:
    """Those that have not begun."""
    for future in futures:
        future.cancel()


def that_fit(wanted: int, peak: int) -> int:
    """How many processes of this peak (bytes) may run at once; one where nothing is known of it or of the machine."""
    if wanted == 1 or not peak or not MEMINFO.exists():
        return 1
    available = int(re.search(r"MemAvailable:\s+(\d+) kB", MEMINFO.read_text())[1]) * 1024
    return max(1, min(wanted, int(available / (HEADROOM * peak)), os.cpu_count() or 1))
