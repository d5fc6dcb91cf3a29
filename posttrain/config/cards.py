"""Tells how much memory the GPUs of a placement have, as far as the labels of its nodes say so.

placement -> gigabytes of one GPU, or nothing
"""

import re

from posttrain.config.placement import Placement

MEMORY_LABEL = "nvidia.com/gpu.memory"  # MiB, by NVIDIA's GPU feature discovery
# Part of a label's value -> gigabytes; the first that matches counts. Labels name cards (nvidia-h100-80gb,
# NVIDIA-A100-SXM4-40GB, nvidia-l4) or, on AWS, types of machines (p5.48xlarge).
CARDS = (
    (r"\bb200\b|^p6-b200\.", 180),
    (r"\bh200\b|^p5en?\.", 141),
    (r"\bh100\b|^p5\.|a100.*80gb|^p4de\.", 80),
    (r"\bl40s?\b|^g6e\.", 48),
    (r"\ba100\b|^p4d\.", 40),
    (r"\b(l4|a10g?)\b|^g[56]\.", 24),
    (r"\b(t4|v100)\b|^(g4dn|p3)\.", 16),
)


def memory_gb(placement: Placement) -> float | None:
    """Returns the memory of the smallest GPU that the labels allow, in gigabytes; None if they name none."""
    if placement.accelerator_count == 0:
        return None
    values = [[(key, value)] for key, value in placement.node_selector.items()]
    values += [
        [(requirement.key, value) for value in requirement.values]
        for affinity in placement.node_affinity
        if affinity.weight is None
        for requirement in affinity.match
        if requirement.operator == "In"
    ]
    known = [[_memory_of(key, value) for key, value in label] for label in values]
    sizes = [min(sizes) for sizes in known if all(sizes)]
    return max(sizes, default=None)


def _memory_of(key: str, value: str) -> float | None:
    if key == MEMORY_LABEL and value.isdecimal():
        return int(value) * 2**20 / 1e9
    return next((size for pattern, size in CARDS if re.search(pattern, value.lower())), None)
