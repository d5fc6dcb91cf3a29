"""What work costs a machine: CPU-seconds and peak memory of a process and of those that it has started and waited for.

`resource`'s numbers -> seconds, bytes
"""

import resource
import sys
from pathlib import Path

UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, bytes


def cpu_seconds_of(*usages: resource.struct_rusage) -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_memory_of(*usages: resource.struct_rusage) -> int:
    """Bytes that the largest single process held at its peak."""
    return max(usage.ru_maxrss for usage in usages) * UNIT


def here() -> tuple[resource.struct_rusage, ...]:
    """Of this process and its children so far."""
    return resource.getrusage(resource.RUSAGE_SELF), of_children()


def of_children() -> resource.struct_rusage:
    """Of the processes that this one has started and waited for, and theirs."""
    return resource.getrusage(resource.RUSAGE_CHILDREN)


def has_gpu() -> bool:
    """Whether NVIDIA's driver is there, asked without torch."""
    return Path("/dev/nvidiactl").exists()
