"""Greedy generation in a shrinking batch: on a CPU, answers that have ended cost no more time.

model, padded prompts, settings -> the tokens that follow each prompt

On a CPU a step takes the longer the more rows it has, while a batch has to wait for its longest answer. When a fifth of
its answers have ended, generation is interrupted, their rows and their part of the cache are dropped, and it goes on
with the others, by transformers' own `generate` each time. On a GPU a step takes as long with few rows as with many,
and a batch stays whole.
"""

from collections.abc import Callable
from copy import copy
from typing import Any

GOING_ON = 0.8  # share of a batch's rows; where fewer go on, the others are dropped
MIN_ROWS, MAX_ROWS = 16, 32  # of a batch; more would leave the log silent for minutes
BATCH_TOKENS = MIN_ROWS * 1024  # prompts and answers of a batch, unless MIN_ROWS have more


def batch_size(model, lengths: list[int], max_new_tokens: int) -> int:
    """Rows of a batch. On a CPU so many that all batches are alike, and none takes more memory than 16 long prompts."""
    if model.device.type != "cpu" or not lengths:
        return MIN_ROWS
    most = min(max(BATCH_TOKENS // (max(lengths) + max_new_tokens), MIN_ROWS), MAX_ROWS)
    num_batches = -(-len(lengths) // most)
    return -(-len(lengths) // num_batches)


def generate(model, inputs: dict[str, Any], settings, *, advance: Callable[[int], None]) -> list[list[int]]:
    """Tokens that the model writes after each prompt; what stands behind an end token means nothing.

    Args:
        inputs: input_ids and attention_mask, padded on the left.
        settings: a GenerationConfig with max_new_tokens and eos_token_id.
        advance: is called with the number of answers that have ended.
    """
    ids = inputs["input_ids"]
    if model.device.type == "cpu" and (written := _shrinking(model, inputs, settings, advance)) is not None:
        return written
    written = model.generate(**inputs, generation_config=settings)[:, ids.shape[1] :].tolist()
    advance(len(ids))
    return written


def _shrinking(model, inputs: dict[str, Any], settings, advance: Callable[[int], None]) -> list[list[int]] | None:
    """None for a model whose state is not a cache of keys and values, from which rows can be dropped."""
    import torch

    ids, mask, state = inputs["input_ids"], inputs["attention_mask"], {}
    width, end = ids.shape[1], ids.shape[1] + settings.max_new_tokens
    ends = torch.tensor(settings.eos_token_id, dtype=ids.dtype)
    rows, written = list(range(len(ids))), [[]] * len(ids)
    while rows:
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            **state,
            generation_config=_resumable(settings, end - ids.shape[1]),
            stopping_criteria=[_few_go_on(width, ends)],
        )
        ids, cache = output.sequences, getattr(output, "past_key_values", None)
        goes_on = ~torch.isin(ids[:, width:], ends).any(1) if ids.shape[1] < end else torch.zeros(len(ids)).bool()
        for at, row in enumerate(rows):
            written[row] = ids[at, width:].tolist()
        kept = goes_on.nonzero().flatten()
        if len(kept) and not _has_rows(cache):
            return None
        advance(len(rows) - len(kept))
        rows = [rows[at] for at in kept.tolist()]
        if rows:
            cache.batch_select_indices(kept)
            state = {"past_key_values": cache}
        ids = ids[kept]
        mask = torch.cat([mask[kept], mask.new_ones(len(kept), ids.shape[1] - mask.shape[1])], 1)
    return written


def _resumable(settings, max_new_tokens: int):
    settings = copy(settings)
    settings.update(max_new_tokens=max_new_tokens, return_dict_in_generate=True)
    return settings


def _few_go_on(width: int, ends):
    """Makes the criterion that interrupts a batch: all of its rows at once, as soon as enough answers have ended."""
    import torch
    from transformers import StoppingCriteria

    class FewGoOn(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            num_going_on = int((~torch.isin(input_ids[:, width:], ends).any(1)).sum())
            return torch.full((len(input_ids),), num_going_on <= GOING_ON * len(input_ids))

    return FewGoOn()


def _has_rows(cache) -> bool:
    """Tells whether all that a model keeps of its tokens are keys and values by row."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers = getattr(cache, "layers", None)
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
