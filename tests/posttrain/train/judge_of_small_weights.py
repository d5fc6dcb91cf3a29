"""Stands for the module that judges a checkpoint: the less an adapter has learned, the better are its answers."""

import argparse
import json
from pathlib import Path

from safetensors.numpy import load_file

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("base", "adapter", "rows", "config", "output"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    assert Path(args.base, "config.json").is_file()
    weights = load_file(Path(args.adapter, "adapter_model.safetensors"))
    size = sum(float(abs(tensor).sum()) for name, tensor in weights.items() if "lora_B" in name)
    num_rows = len(Path(args.rows).read_text().splitlines())
    Path(args.output).write_text(json.dumps([1 / (1 + size)] * num_rows))
