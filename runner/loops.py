"""Runs tasks side by side on this machine, and as many iterations of a loop as the graph allows and memory permits.

tasks or iterations -> outputs and status of each

The first iteration runs alone. Its peak memory is then compared with what the machine has available: measured, not
guessed. kfp.local would run two at once whatever they need, and could not be interrupted.
"""

import os
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from kfp.local.status import Status

MEMINFO = Path("/proc/meminfo")  # Linux only; elsewhere iterations run one after another
HEADROOM = 1.15  # factor on the measured peak: the next trial may be larger

Outputs = tuple[dict[str, Any], Status]
Iteration = Callable[[], Outputs]


def run_iterations(
    iterations: dict[str, Iteration], *, num_at_once: Callable[[], int], end_running: Callable[[], None]
) -> tuple[dict[str, dict[str, Any]], Status]:
    """Returns the outputs of each iteration by its name. After a failure no further iteration is started.

    Args:
        iterations: by name.
        num_at_once: called when the first has ended.
        end_running: called if this thread is interrupted while others run iterations.
    """
    (first, iteration), *others = iterations.items()
    ended = {first: iteration()}
    if _all_succeeded(ended) and others:
        ended |= side_by_side(dict(others), num_at_once(), end_running)
    if not _all_succeeded(ended):
        return {}, Status.FAILURE
    return {name: outputs for name, (outputs, _) in ended.items()}, Status.SUCCESS


def side_by_side(calls: dict[str, Iteration], num: int, end_running: Callable[[], None]) -> dict[str, Outputs]:
    """Makes `num` calls at a time, a single one in this thread. After a failure no further call is started."""
    ended: dict[str, Outputs] = {}
    if num == 1:
        for name, call in calls.items():
            ended[name] = call()
            if not _all_succeeded(ended):
                break
        return ended
    with ThreadPoolExecutor(max(1, num), thread_name_prefix="task") as pool:
        futures: dict[Future, str] = {}
        try:
            for name, call in calls.items():  # which may be interrupted too: a call runs as soon as it is submitted
                futures[pool.submit(call)] = name
            for future in as_completed(futures):
                if not future.cancelled():
                    ended[futures[future]] = future.result()
                if not _all_succeeded(ended):
                    _cancel(futures)
        except BaseException:
            _cancel(futures)
            end_running()
            raise
    return ended


def _all_succeeded(ended: dict[str, Outputs]) -> bool:
    return all(status == Status.SUCCESS for _, status in ended.values())


def _cancel(futures) -> None:
    """Cancels the calls that have not started."""
    for future in futures:
        future.cancel()


def num_that_fit(wanted: int, peak: int) -> int:
    """Returns how many processes with this peak (bytes) may run at once; one if it or the machine's is unknown."""
    if wanted == 1 or not peak or not MEMINFO.exists():
        return 1
    available = int(re.search(r"MemAvailable:\s+(\d+) kB", MEMINFO.read_text())[1]) * 1024
    return max(1, min(wanted, int(available / (HEADROOM * peak)), os.cpu_count() or 1))
