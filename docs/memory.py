"""Writes the table of which trainings fit on which GPU, by the estimate that preflight uses.

python -m docs.memory -> docs/memory.md
"""

from pathlib import Path

from posttrain.config import DpoConfig, SftConfig
from posttrain.train import memory

SHAPES = {
    "0.5B (Qwen2.5)": memory.Shape(24, 896, 4864, 896, 128, 151_936, is_tied=True),
    "1B (Llama 3.2)": memory.Shape(16, 2048, 8192, 2048, 512, 128_256, is_tied=True),
    "3B (Llama 3.2)": memory.Shape(28, 3072, 8192, 3072, 1024, 128_256, is_tied=True),
    "7B (Qwen2.5)": memory.Shape(28, 3584, 18_944, 3584, 512, 152_064, is_tied=False),
    "8B (Llama 3.1)": memory.Shape(32, 4096, 14_336, 4096, 1024, 128_256, is_tied=False),
    "14B (Qwen2.5)": memory.Shape(48, 5120, 13_824, 5120, 1024, 152_064, is_tied=False),
    "32B (Qwen2.5)": memory.Shape(64, 5120, 27_648, 5120, 1024, 152_064, is_tied=False),
}
METHODS = {"SFT": SftConfig(), "SFT, 4 bits": SftConfig(load_in_4bit=True), "DPO": DpoConfig()}
CARDS_GB = (16, 24, 48, 80, 141)
FRACTION = 0.9  # gpu_memory_fraction
PAGE = Path(__file__).with_suffix(".md")
HEAD = """# What fits on a GPU

Gigabytes of one GPU, estimated by the function behind preflight's warning (`posttrain/train/memory.py`), for the
default settings, rows of 2,048 tokens, LoRA as configured, {fraction:.0%} of the GPU usable. *With* and *without* mean
gradient checkpointing, which `auto` turns on only where a training would not fit without. One estimate was compared
with a measurement: 69 GB for SFT of a 7B model on rows of 4,096 tokens; 65 GB were allocated.

| model | method | GB with | GB without | smallest GPU, with | smallest GPU, without |
|---|---|---|---|---|---|
"""


def page() -> str:
    lines = [
        _line(name, method, [memory.estimate(shape, config, checkpointing=on).total / 1e9 for on in (True, False)])
        for name, shape in SHAPES.items()
        for method, config in METHODS.items()
    ]
    return HEAD.format(fraction=FRACTION) + "\n".join(lines) + "\n"


def _line(name: str, method: str, sizes: list[float]) -> str:
    cards = [next((f"{card} GB" for card in CARDS_GB if size <= FRACTION * card), "none") for size in sizes]
    return f"| {' | '.join([name, method, *(f'{size:.0f}' for size in sizes), *cards])} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
