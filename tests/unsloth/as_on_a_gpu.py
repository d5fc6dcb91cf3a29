"""Runs a stage on the CPU with what otherwise a GPU brings: the base in 4 bits, and trainers as unsloth builds them.

python -m tests.unsloth.as_on_a_gpu posttrain.sft <arguments>
"""

import sys
from importlib import import_module

from posttrain.config import SftConfig
from posttrain.train import backend


def main(module: str, *argv: str) -> None:
    library = backend.prepare().library
    import torch

    if library == "unsloth":
        import unsloth.models  # builds them from trl's source, and puts them in their place  # noqa: F401
    load = backend.load_for_training

    def load_and_tell(path, config):
        import trl

        model, lora = load(path, config)
        print("base:", "4 bits" if getattr(model, "is_loaded_in_4bit", False) else "16 bits or more")
        print("trainer:", trl.DPOTrainer.__name__)
        return model, lora

    backend.load_for_training = load_and_tell
    backend.quantises = lambda config: isinstance(config, SftConfig) and config.load_in_4bit
    torch.cuda.current_device = lambda: "cpu"
    import_module(module).main(list(argv))


if __name__ == "__main__":
    main(*sys.argv[1:])
