"""Compares a model with itself computed in another way: the test that a shortcut must pass to be used.

logits as the model has them, logits with the shortcut -> whether they are the same up to rounding
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}  # of logits, as a share of the largest
NUM_LAYERS = 2  # of the trial

logger = logging.getLogger(__name__)


@contextmanager
def first_layers(model: Any) -> Iterator[None]:
    """Shortens the model to its first layers.

    Over all layers of a wide model in 16 bit, what two right ways round differently adds up to as much as an error
    would change; an error shows in the first layers.
    """
    config = model.config.get_text_config()
    whole, config.num_hidden_layers = config.num_hidden_layers, min(NUM_LAYERS, config.num_hidden_layers)
    try:
        yield
    finally:
        config.num_hidden_layers = whole


def is_same(model: Any, logits: Any, expected: Any, *, shortcut: str) -> bool:
    """Tells whether the model's logits are those expected, and logs by how much they differ where they are not."""
    difference = float((logits - expected).abs().max() / expected.abs().max())
    tolerance = TOLERANCE[str(model.dtype).removeprefix("torch.")]
    if difference <= tolerance:
        return True
    logger.warning("%s is left out: logits differ by %.2g of the largest, not by %g", shortcut, difference, tolerance)
    return False
