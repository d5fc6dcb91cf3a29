"""The ranks: processes that train one model together, one for each GPU of the pod, started by `torchrun`.

What all of them must decide alike they decide here, or one would wait for another that has gone another way: what any
rank has seen all act on, and what only the first rank does and reads it tells the others. A single process asks nobody.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

# As long as storage may take for a checkpoint, for which the others wait; a rank that has died ends them all at once.
PATIENCE = timedelta(hours=1)
T = TypeVar("T")


def count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that writes what is written once."""
    return os.environ.get("RANK", "0") == "0"


def join(device: Literal["cuda", "cpu"]) -> None:
    """Connects this process with the other ranks and gives it a GPU of its own, if there are any.

    Raises:
        ValueError: there are fewer GPUs than ranks.
    """
    import torch

    if count() == 1 or torch.distributed.is_initialized():
        return
    if device == "cpu":
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # else cpu:0, to which torch restores no optimizer
    elif torch.cuda.device_count() < count():
        num_gpus = torch.cuda.device_count()
        raise ValueError(f"{count()} ranks are to train, but here are {num_gpus} GPUs: set accelerator_count to that")
    else:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)


def part() -> None:
    """Undoes `join`."""
    import torch

    if count() > 1:
        torch.distributed.destroy_process_group()


def any_of(*flags: bool) -> list[bool]:
    """Whether each flag is set in any rank."""
    if count() == 1:
        return list(flags)
    import torch

    seen = torch.tensor(flags, dtype=torch.uint8)
    torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MAX, group=_group())
    return [bool(flag) for flag in seen]


def of_first(give: Callable[[], T]) -> T:
    """What `give` returns in the first rank, which alone calls it. The others have waited for it."""
    if count() == 1:
        return give()
    import torch

    found = [give() if is_first() else None]
    torch.distributed.broadcast_object_list(found, src=0, group=_group())
    return found[0]


def of_each(value: T) -> list[T]:
    """The value that each rank gives, in their order."""
    if count() == 1:
        return [value]
    import torch

    values: list[Any] = [None] * count()
    torch.distributed.all_gather_object(values, value, group=_group())
    return values


def wait() -> None:
    """Returns once all ranks have come here."""
    any_of(False)


@contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder that all ranks share; what went wrong inside leaves nobody waiting."""
    with tempfile.TemporaryDirectory() as own:
        yield Path(of_first(lambda: own))
        wait()


@cache
def _group():
    """All ranks, over gloo: what they agree on lies in the machine's memory, and no GPU has to finish its queue."""
    import torch

    return torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
