"""Agreement between ranks, the processes that train one model together, one for each GPU of one pod or of several.

`posttrain.train.torchrun` starts them in a pod; on several nodes torchrun itself does, by its variables PET_*. Nodes
share no folder: what ranks read from a disk is brought to each node, by the first rank there. Decisions that all ranks
must share are made here, or one rank would wait for another that took a different branch: a flag that is set in any
rank counts in all, and what only the first rank does or reads is broadcast to the others. A single process communicates
with nobody.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

# The others wait while the first rank brings a checkpoint from storage. A rank that dies ends all of them at once.
TIMEOUT = timedelta(hours=1)
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # of a process that is one of several
T = TypeVar("T")


def count() -> int:
    """Returns how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Returns the number of this process; that of the first is 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Tells whether this process is the one that writes what must be written only once."""
    return rank() == 0


def per_node() -> int:
    """Returns how many ranks a node has; all nodes have as many."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or count())


def num_nodes() -> int:
    """Returns on how many nodes the ranks are."""
    return count() // per_node()


def node() -> int:
    """Returns the number of this process's node; that of the first rank is 0."""
    return rank() // per_node()


def is_first_of_node() -> bool:
    """Tells whether this process is the one that writes what each node needs on its own disk."""
    return rank() % per_node() == 0


def join(device: Literal["cuda", "cpu"]) -> None:
    """Connects this process to the other ranks, and picks its GPU.

    Raises:
        ValueError: there are fewer GPUs than ranks.
    """
    import torch

    if count() == 1 or torch.distributed.is_initialized():
        return
    if device == "cpu":
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # not cpu:0, to which torch restores no optimizer
    elif torch.cuda.device_count() < per_node():
        num_gpus = torch.cuda.device_count()
        raise ValueError(f"{per_node()} ranks need a GPU each, but there are {num_gpus}: set accelerator_count to that")
    else:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)


def leave() -> None:
    """Disconnects this process from the other ranks."""
    import torch

    if count() > 1:
        torch.distributed.destroy_process_group()


def any_of(*flags: bool) -> list[bool]:
    """Tells for each flag whether it is set in any rank."""
    if count() == 1:
        return list(flags)
    import torch

    seen = torch.tensor(flags, dtype=torch.uint8)
    torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MAX, group=_group())
    return [bool(flag) for flag in seen]


def from_first(compute: Callable[[], T]) -> T:
    """Calls `compute` in the first rank only, and returns its result in every rank."""
    if count() == 1:
        return compute()
    import torch

    results = [compute() if is_first() else None]
    torch.distributed.broadcast_object_list(results, src=0, group=_group())
    return results[0]


def from_first_of_node(compute: Callable[[], T]) -> T:
    """Calls `compute` in the first rank of each node only, and returns its result in all ranks of that node."""
    return gather(compute() if is_first_of_node() else None)[node() * per_node()]


def gather(value: T) -> list[T]:
    """Returns the values of all ranks, in the order of the ranks."""
    if count() == 1:
        return [value]
    import torch

    values: list[Any] = [None] * count()
    torch.distributed.all_gather_object(values, value, group=_group())
    return values


def wait() -> None:
    """Returns once every rank has called it."""
    any_of(False)


@contextmanager
def shared_folder() -> Iterator[Path]:
    """Makes a temporary folder for the ranks of each node. An error inside the block leaves no other rank waiting."""
    with tempfile.TemporaryDirectory() as own:
        yield Path(from_first_of_node(lambda: own))
        wait()


@cache
def _group():
    """Returns a gloo group of all ranks: messages stay in main memory, and no GPU has to drain its queue for them."""
    import torch

    return torch.distributed.new_group(backend="gloo", timeout=TIMEOUT)
