"""The GPU of these tests, or its stand-in on a CPU, by which their code runs before a GPU does: GPU_TESTS_ON=cpu.

The stand-in has kernels, compiler and 4 bits as far as a CPU can; its memory is what autograd keeps for the backward
pass, and `gpu_memory_fraction` limits that.
"""

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from posttrain.config import SftConfig
from posttrain.train import backend
from posttrain.train.fast import layers
from tests.posttrain.train.fast.test_attention import take_kernel

VARIABLE = "GPU_TESTS_ON"


def is_rehearsed() -> bool:
    """Tells whether the stand-in was asked for."""
    return os.environ.get(VARIABLE) == "cpu"


class Card:
    """The first GPU."""

    device = "cuda"
    runner = ()  # before the module of a stage that runs as a command

    def memory(self) -> int:
        import torch

        return torch.cuda.get_device_properties(0).total_memory

    def forget_peak(self) -> None:
        import torch

        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        import torch

        return torch.cuda.max_memory_reserved()

    def take(self, patch: pytest.MonkeyPatch, kernel: str) -> None:
        """Leaves no other kernel for packed batches."""
        from posttrain.train.fast import attention

        patch.setattr(attention, "kernels", lambda config: [kernel])


@dataclass(eq=False)
class Kept:
    """A tensor that autograd keeps."""

    tensor: Any


@dataclass
class StandIn(Card):
    """A CPU instead."""

    device: str = "cpu"
    runner: tuple[str, ...] = ("tests.unsloth.as_on_a_gpu",)
    fraction: float = 1.0
    sizes: dict[int, int] = field(default_factory=dict)  # of what is kept, by number
    highest: int = 0
    num_kept: int = 0

    def memory(self) -> int:
        return 10**10

    def forget_peak(self) -> None:
        self.highest = 0

    def peak(self) -> int:
        return self.highest

    def take(self, patch: pytest.MonkeyPatch, kernel: str) -> None:
        take_kernel(patch, kernel)

    def keep(self, tensor: Any) -> Kept:
        import torch

        kept = Kept(tensor.detach())  # itself, it would keep itself alive
        if isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter):
            return kept
        used = sum(self.sizes.values()) + tensor.nbytes
        if used > self.fraction * self.memory():
            raise torch.OutOfMemoryError(f"{used} bytes are more than {self.fraction} of the stand-in's memory")
        self.num_kept += 1
        self.sizes[self.num_kept] = tensor.nbytes
        self.highest = max(self.highest, used)
        weakref.finalize(kept, self.sizes.pop, self.num_kept)
        return kept

    @contextmanager
    def instead(self) -> Iterator[None]:
        """Has trainings of this process take it for a GPU."""
        import torch

        prepare = backend.prepare

        def prepare_stand_in(gpu_memory_fraction: float = 1.0) -> backend.Backend:
            self.fraction = gpu_memory_fraction
            return prepare(gpu_memory_fraction)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backend, "prepare", prepare_stand_in)
            patch.setattr(backend, "quantises", lambda config: isinstance(config, SftConfig) and config.load_in_4bit)
            patch.setattr(layers, "_compiles", layers.may_take)
            patch.setattr(torch.cuda, "current_device", lambda: "cpu")
            compiled = torch.nn.Module.compile  # its code in C++ takes minutes
            patch.setattr(torch.nn.Module, "compile", lambda module: compiled(module, backend="aot_eager"))
            with torch.autograd.graph.saved_tensors_hooks(self.keep, lambda kept: kept.tensor):
                yield
