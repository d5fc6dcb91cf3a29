"""Runs tasks side by side on this machine; iterations of a loop as many as the graph allows and its memory holds.

tasks or iterations -> what each came to

The first iteration runs alone. What it has held at its peak is then set against what the machine has available:
measured, not guessed. kfp.local's own would run two at once whatever they need, and could not be interrupted.
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
    found = {first: iteration()}
    if _all_well(found) and others:
        found |= side_by_side(dict(others), num_at_once(), end_running)
    if not _all_well(found):
        return {}, Status.FAILURE
    return {name: outputs for name, (outputs, _) in found.items()}, Status.SUCCESS


def side_by_side(calls: dict[str, Iteration], num: int, end_running: Callable[[], None]) -> dict[str, Outputs]:
    """What each call came to, `num` at once; one alone in this thread. After one that fails no other is begun."""
    found: dict[str, Outputs] = {}
    if num == 1:
        for name, call in calls.items():
            found[name] = call()
            if not _all_well(found):
                break
        return found
    with ThreadPoolExecutor(max(1, num), thread_name_prefix="task") as pool:
        futures = {pool.submit(call): name for name, call in calls.items()}
        try:
            for future in as_completed(futures):
                if not future.cancelled():
                    found[futures[future]] = future.result()
                if not _all_well(found):
                    _cancel(futures)
        except BaseException:
            _cancel(futures)
            end_running()
            raise
    return found


def _all_well(found: dict[str, Outputs]) -> bool:
    return all(status == Status.SUCCESS for _, status in found.values())


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
