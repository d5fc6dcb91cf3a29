"""The shortcuts of training on a GPU, one set against the other: which of them are on by default is decided by this.

shape, sets of shortcuts -> tokens or pairs a second and peak memory of each, and the slowest kernels of a step

    python -m benchmarks.gpu_shortcuts sft                 # Qwen2.5-7B's shape, rows of 4,096 tokens
    python -m benchmarks.gpu_shortcuts dpo                 # Llama-3.2-1B's, pairs of at most 1,024
    python -m benchmarks.gpu_shortcuts sft --sets varlen,lora varlen,lora,liger --profile profiles

Each set trains in a process of its own, which may fail without the others.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

SETS = {
    "sft": (
        "varlen,lora,liger",
        "varlen,dense,lora,liger",
        "varlen,dense,lora,liger,workers",
        "varlen,lora",
        "varlen,lora,compile",
        "varlen,lora,liger,compile",
        "rows,lora,liger",
        "flex,lora,liger",
        "varlen,liger",
        "none",
    ),
    "dpo": ("flex,lora,logits", "flex,lora,logits,liger", "rows,lora,logits,liger", "lora,logits,liger", "none"),
}
TRAININGS = {
    "sft": {"shape": "Qwen2.5-7B", "lengths": "full", "max_length": 4096, "batch_size": 2},
    "dpo": {"shape": "Llama-3.2-1B", "lengths": "mixed", "max_length": 1024, "batch_size": 8},
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=SETS)
    parser.add_argument("--sets", nargs="+", help="sets of shortcuts (default: those of the kind)")
    parser.add_argument("--settings", type=json.loads, default={}, help='JSON, such as {"shape": "tiny"}')
    parser.add_argument("--minutes", type=float, default=3.0, help="begin no set later (default: %(default)s)")
    parser.add_argument("--profile", type=Path, help="folder for the kernels of one step of each set, slowest first")
    args = parser.parse_args(argv)
    settings = {"kind": args.kind, "accumulation": 2, "steps": 4, "warm_up": 2} | TRAININGS[args.kind] | args.settings
    started, table = time.monotonic(), []
    for shortcuts in args.sets or SETS[args.kind]:
        if time.monotonic() - started > 60 * args.minutes:
            break
        table.append((shortcuts, run(shortcuts, settings, args.profile)))
        print(f"{shortcuts}: {json.dumps(table[-1][1])}", flush=True)
    print(f"\n{settings['shape']}, {settings['lengths']} rows of {settings['max_length']} tokens, {_card()}")
    for shortcuts, numbers in table:
        print(f"{shortcuts:32}" + "  ".join(f"{name} {_shown(value)}" for name, value in numbers.items()))


def run(shortcuts: str, settings: dict[str, Any], profile: Path | None) -> dict[str, float]:
    """Trains with these shortcuts in a process of its own and returns what it measured."""
    processes = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    ours, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=_train, args=(shortcuts, settings, profile, theirs))
    started = time.monotonic()
    process.start()
    theirs.close()
    try:
        numbers = ours.recv()
    except EOFError:
        numbers = {}
    process.join()
    return numbers | {"whole_seconds": time.monotonic() - started}


def _train(shortcuts: str, settings: dict[str, Any], profile: Path | None, results: Any) -> None:
    from benchmarks import gpu_side

    os.environ["POSTTRAIN_SHORTCUTS"], os.environ["POSTTRAIN_BACKEND"] = shortcuts, "peft"
    if profile:
        profile.mkdir(parents=True, exist_ok=True)
        _profile_step(profile / f"{settings['kind']}-{shortcuts.replace(',', '-')}.txt", after=settings["accumulation"])
    printed = []
    gpu_side.print = lambda text, **_: printed.append(json.loads(text))
    try:
        gpu_side.main(["ours", json.dumps(settings)])
        results.send(printed[0])
    except Exception:  # noqa: BLE001  the other sets are to run all the same
        traceback.print_exc()
        sys.exit(1)


def _profile_step(path: Path, *, after: int) -> None:
    """Has the training step after `after` others write its kernels."""
    import torch
    from transformers import Trainer

    training_step, calls = Trainer.training_step, []

    def profiled(trainer, *args, **kwargs):
        calls.append(1)
        if len(calls) != after + 1:
            return training_step(trainer, *args, **kwargs)
        with torch.profiler.profile() as profile:
            loss = training_step(trainer, *args, **kwargs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        path.write_text(profile.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=90))
        return loss

    Trainer.training_step = profiled


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:10,.2f}"


def _card() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"


if __name__ == "__main__":
    main()
