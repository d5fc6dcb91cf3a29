"""Decides which shortcuts a training may take: those on by default, or those that POSTTRAIN_SHORTCUTS names."""

import os

from posttrain.config.placement import SHORTCUTS_ENV

# varlen, flex and rows are the kernels of packed batches: without all three, batches are padded. With dense, varlen
# computes rows of one length as a batch. With workers, a process of its own collates batches while the GPU computes.
# Where a shortcut suits neither device nor model, it is left out by itself.
BY_DEFAULT = ("varlen", "flex", "rows", "lora", "logits", "liger")
ON_REQUEST = ("compile", "dense", "workers")


def may_take(name: str) -> bool:
    """Tells whether a training may take the shortcut `name`.

    Raises:
        ValueError: POSTTRAIN_SHORTCUTS names one that does not exist.
    """
    known = BY_DEFAULT + ON_REQUEST
    assert name in known, name
    asked = os.environ.get(SHORTCUTS_ENV)
    if asked is None:
        return name in BY_DEFAULT
    chosen = [part.strip() for part in asked.split(",") if part.strip() not in ("", "none")]
    for part in chosen:
        if part not in known:
            raise ValueError(f"{SHORTCUTS_ENV}={asked!r}: {part!r} is none of {', '.join(known)}: correct or unset it")
    return name in chosen
