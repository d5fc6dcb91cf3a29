"""CPU-seconds and peak memory of a process, and of the processes that it started and waited for.

`resource`'s numbers -> seconds, bytes
"""

import resource
import sys
from pathlib import Path

UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, bytes


def cpu_seconds_of(*usages: resource.struct_rusage) -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_memory_of(*usages: resource.struct_rusage) -> int:
    """Returns the peak memory of the largest single process, in bytes."""
    return max(usage.ru_maxrss for usage in usages) * UNIT


def here() -> tuple[resource.struct_rusage, ...]:
    """Returns the usage of this process and of its children so far."""
    return resource.getrusage(resource.RUSAGE_SELF), of_children()


def of_children() -> resource.struct_rusage:
    """Returns the usage of all processes that this one started and waited for, and of theirs."""
    return resource.getrusage(resource.RUSAGE_CHILDREN)


def num_gpus() -> int:
    """Returns the number of GPUs that this container or machine has."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def has_gpu() -> bool:
    """Returns whether NVIDIA's driver is installed, without importing torch."""
    return Path("/dev/nvidiactl").exists()
