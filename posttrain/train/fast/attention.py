"""Computes attention among the tokens of a packed batch, each of which sees its own row and what its rows share.

queries, keys and values of packed tokens, `Layout` of their rows -> what each row would get alone

    rows      sdpa row by row: on a CPU, and where nothing else runs
    varlen    flash attention over rows of any length: on a GPU of compute capability 8.0 or higher, in 16 bit;
              FlashAttention 3 where `flash_attn_interface` is installed; with the shortcut `dense`, rows of one length
              are a batch for sdpa, which on new GPUs has kernels of cuDNN that rows of any length have not
    flex      FlexAttention with a block mask, which lets rows share a beginning, and pairs a prompt: on such a GPU,
              where Triton can compile
"""

import logging
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, Literal

from posttrain.train.fast.chosen import may_take

NAME = "posttrain_rows"  # of `attend` among the attention implementations of transformers
BLOCK_SIZE = 128  # tokens; FlexAttention skips blocks of queries by keys that see nothing of each other
MAX_HEAD_WIDTH = 256  # of flash attention
LENGTH_STEP = 256  # tokens; flash attention needs a bound on the rows' lengths, and compiled code is made anew for each

Kernel = Literal["rows", "varlen", "flex"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """The rows of a packed batch, in order.

    The tokens of a row from the end of its gap on do not attend to those inside it: those of a pair's rejected answer
    not to the chosen one.
    """

    row_lengths: list[int]  # in tokens
    gaps: Sequence[tuple[int, int]]  # of each row, start and end within its own tokens; (0, 0): none
    num_shared: int = 0  # tokens of the first row if that is the beginning of all others, else 0

    def inputs(self, kernel: Kernel, device: Any) -> dict[str, Any]:
        """Returns what the model must be given for `attend` to compute these rows with this kernel."""
        if kernel == "varlen" and may_take("dense") and len(set(self.row_lengths)) == 1:
            return {"num_rows": len(self.row_lengths)}
        if kernel == "varlen":
            longest = -(-max(self.row_lengths) // LENGTH_STEP) * LENGTH_STEP
            return {"row_bounds": _bounds(self.row_lengths, device), "longest_row": longest}
        if kernel == "flex":
            return {"block_mask": Visible.of(self, device).block_mask()}
        masks = [self._mask(row) for row in range(len(self.row_lengths))]
        on_device = [mask if mask is None else _moved(mask[None, None], device) for mask in masks]
        return {"row_lengths": self.row_lengths, "row_masks": on_device, "num_shared": self.num_shared}

    def _mask(self, row: int) -> Any:
        """Makes a row's mask [queries, keys], True where a query attends to a key; None: to all before it."""
        import torch

        length, (start, end) = self.row_lengths[row], self.gaps[row]
        follows_shared = self.num_shared and row > 0
        if start == end and not follows_shared:
            return None
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        mask[end:, start:end] &= start == end
        return torch.nn.functional.pad(mask, (self.num_shared, 0), value=True) if follows_shared else mask


@dataclass(frozen=True)
class Visible:
    """The keys that each query of a packed batch attends to, as bounds of their places: int32 tensors [tokens].

    A query sees no key after itself. Before it, it sees those under `shared_end`, and those of its row, which begins at
    `row_start`, outside the gap from `gap_start` to `gap_end`.
    """

    shared_end: Any
    row_start: Any
    gap_start: Any
    gap_end: Any

    @classmethod
    def of(cls, layout: Layout, device: Any) -> "Visible":
        import torch

        columns, start = [], 0
        for length, (gap_start, gap_end) in zip(layout.row_lengths, layout.gaps, strict=True):
            row = torch.tensor([layout.num_shared, start, start + gap_start, start + gap_end], dtype=torch.int32)
            columns.append(row[:, None].expand(4, length).clone())
            columns[-1][2:, :gap_end] = 0  # its queries before the end of the gap see all of the row before them
            start += length
        return cls(*_moved(torch.cat(columns, dim=1), device).unbind())

    def mask_mod(self) -> Any:
        """Returns the function by which FlexAttention asks whether a query attends to a key."""
        shared_end, row_start, gap_start, gap_end = self.shared_end, self.row_start, self.gap_start, self.gap_end

        def sees(batch, head, query, key):
            outside_gap = (key < gap_start[query]) | (key >= gap_end[query])
            return (key <= query) & ((key < shared_end[query]) | ((key >= row_start[query]) & outside_gap))

        return sees

    def block_mask(self) -> Any:
        """Makes FlexAttention's block mask from the bounds of each block, without a mask of all tokens by all."""
        from torch.nn.attention.flex_attention import BlockMask

        some, whole = self._blocks()
        return BlockMask.from_kv_blocks(
            *_listed(some & ~whole),
            *_listed(whole),
            BLOCK_SIZE=BLOCK_SIZE,
            mask_mod=self.mask_mod(),
            seq_lengths=(len(self.row_start), len(self.row_start)),
        )

    def _blocks(self) -> tuple[Any, Any]:
        """Tells for blocks of queries by keys where some may be seen, and where all are, as [blocks, blocks]."""
        import torch

        first = torch.arange(0, len(self.row_start), BLOCK_SIZE, device=self.row_start.device, dtype=torch.int32)
        last = first + BLOCK_SIZE - 1
        first_query, last_query = first[:, None], last[:, None]
        shared_min, shared_max = _extremes(self.shared_end)
        row_min, row_max = _extremes(self.row_start)
        gap_start_min, gap_start_max = _extremes(self.gap_start)
        gap_end_min, gap_end_max = _extremes(self.gap_end)
        in_gap = (first >= gap_start_max) & (last < gap_end_min)
        beside_gap = (last < gap_start_min) | (first >= gap_end_max)
        some = (first <= last_query) & ((first < shared_max) | ((last >= row_min) & ~in_gap))
        whole = (last <= first_query) & ((last < shared_min) | ((first >= row_max) & beside_gap))
        return some, whole


def _extremes(bounds: Any) -> tuple[Any, Any]:
    """Returns the smallest and the largest value of each block of queries, as [blocks, 1]."""
    import torch

    missing = -len(bounds) % BLOCK_SIZE
    blocks = torch.cat([bounds, bounds[-1:].expand(missing)]).view(-1, BLOCK_SIZE)
    return blocks.amin(dim=1, keepdim=True), blocks.amax(dim=1, keepdim=True)


def _listed(blocks: Any) -> tuple[Any, Any]:
    """Lists the True blocks of each row first: their number [1, 1, rows], and indices [1, 1, rows, columns]."""
    import torch

    indices = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(dim=1, dtype=torch.int32)[None, None], indices.int()[None, None]


def _bounds(lengths: Iterable[int], device: Any) -> Any:
    """Returns where each row starts, and where the last one ends: int32 [rows + 1]."""
    import torch

    return _moved(torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32), device)


def _moved(tensor: Any, device: Any) -> Any:
    """Copies a tensor of this machine's memory to the device, which need not finish its work before."""
    import torch

    on_gpu = torch.device(device).type == "cuda"
    return tensor.pin_memory().to(device, non_blocking=True) if on_gpu else tensor


def kernels(config: Any) -> list[Kernel]:
    """Lists the kernels that may run for a model of this configuration on this process's device, fastest first."""
    from posttrain.train import backend

    is_plain = not getattr(config, "attention_dropout", 0.0) and _head_width(config) <= MAX_HEAD_WIDTH
    if backend.current().device == "cpu" or not is_plain or not _is_ampere():
        return ["rows"]
    return ["varlen", *(["flex"] if can_compile() else []), "rows"]


@cache
def can_compile() -> bool:
    """Tells whether torch can compile for this GPU: Triton builds code in C to drive it, against Python's headers.

    Triton is asked to do so, because it alone knows which compiler and which headers it takes.
    """
    if not find_spec("triton"):
        return False
    from triton.runtime import driver

    try:
        return driver.active is not None
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        logger.warning("flex, liger and compile are left out: Triton cannot compile here: %s", error)
        return False


def _head_width(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _is_ampere() -> bool:
    import torch

    return torch.cuda.get_device_capability() >= (8, 0)


def register() -> None:
    """Makes `attend` known to transformers, and flash attention's newest version to torch where it is installed."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, partial(attend, varlen_options=_varlen_options()))
    AttentionMaskInterface.register(NAME, _padding_mask)
    if torch.cuda.is_available() and find_spec("flash_attn_interface") and torch.cuda.get_device_capability()[0] == 9:
        torch.nn.attention.activate_flash_attention_impl("FA3")


def attend(
    module,
    query,
    key,
    value,
    attention_mask,
    *,
    row_lengths=None,
    row_masks=None,
    num_shared=0,
    num_rows=0,
    row_bounds=None,
    longest_row=0,
    block_mask=None,
    varlen_options=None,
    **settings,
):
    """Computes attention for the inputs of `Layout.inputs`, and as sdpa does for a padded batch.

    Arguments and results are those that transformers' AttentionInterface asks for.
    """
    from transformers.integrations.flex_attention import flex_attention_forward
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if num_rows:
        return _as_batch(module, (query, key, value), num_rows, **settings), None
    if row_bounds is not None:
        options = {"scale": settings.get("scaling"), **varlen_options}
        return _with_varlen((query, key, value), row_bounds, longest_row, **options), None
    if block_mask is not None:
        return flex_attention_forward(module, query, key, value, block_mask, **settings)
    if row_lengths is not None:
        return _by_row(module, (query, key, value), row_lengths, row_masks, num_shared, **settings), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)


def _as_batch(module: Any, states: tuple, num_rows: int, **settings) -> Any:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    batch = [part[0].unflatten(1, (num_rows, -1)).transpose(0, 1) for part in states]
    return sdpa_attention_forward(module, *batch, None, **settings)[0].flatten(end_dim=1)[None]


def _with_varlen(states: tuple, bounds: Any, longest: int, **options) -> Any:
    from torch.nn.attention.varlen import varlen_attn

    tokens_first = [part[0].transpose(0, 1) for part in states]
    return varlen_attn(*tokens_first, bounds, bounds, longest, longest, window_size=(-1, 0), **options)[None]


def _varlen_options() -> dict[str, bool]:
    """Returns the argument by which keys may have fewer heads than queries; before torch 2.12 they always may."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    return {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def _by_row(module: Any, states: tuple, row_lengths: list[int], row_masks: list, num_shared: int, **settings) -> Any:
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    queries, keys, values = (list(part.split(row_lengths, dim=2)) for part in states)
    if num_shared:
        for part in (keys, values):
            part[1:] = [torch.cat([part[0], own], dim=2) for own in part[1:]]
    rows = zip(queries, keys, values, row_masks, strict=True)
    return torch.cat([sdpa_attention_forward(module, *row, **settings)[0] for row in rows], dim=1)


def _padding_mask(*, attention_mask: Any = None, **settings) -> Any:
    """Makes no mask for packed rows, which `attend` masks by itself: one of all tokens by all tokens would be large."""
    from transformers.masking_utils import sdpa_mask

    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **settings)
