"""Time and peak memory of a merge: ours, peft's merge_and_unload + save, and `cp -r` of the base as the floor.

shape (--hidden, --layers), number of rounds -> a table on stdout, JSON with every run

The base has random bf16 weights in the shape of Qwen2.5 (tied embeddings, 151,936 tokens); the adapter has r=16 on all
linear layers. The three take turns, each in a process of its own, imports included; the base is read once before, so
the page cache is warm.

    python benchmarks/merge.py                          # 0.5 GB
    python benchmarks/merge.py --hidden 1536 --layers 28 # Qwen2.5-1.5B, 3.1 GB
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OURS = "import sys; from posttrain.merge import merge; merge(*sys.argv[1:])"
PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
PeftModel.from_pretrained(base, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
"""


def commands(base: Path, adapter: Path, model: Path) -> dict[str, list[str]]:
    paths = [str(base), str(adapter), str(model)]
    return {
        "ours": [sys.executable, "-c", OURS, *paths],
        "peft": [sys.executable, "-c", PEFT, *paths],
        "cp -r": ["cp", "-r", str(base), str(model)],
    }


def write_models(folder: Path, hidden: int, layers: int) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=151_936, hidden_size=hidden, intermediate_size=hidden * 35 // 6, num_hidden_layers=layers,
        num_attention_heads=hidden // 128, num_key_value_heads=2, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(shape)
    model.save_pretrained(folder / "base")
    settings = LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    get_peft_model(model, settings).save_pretrained(folder / "adapter")


def in_child(work, *arguments) -> None:
    """Runs `work` in a new process: a child's peak memory starts at what its parent holds, so this one stays small."""
    child = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    child.start()
    child.join()
    if child.exitcode:
        raise RuntimeError(f"{work.__name__} exited {child.exitcode}")


def run(command: list[str], log: Path) -> dict[str, float]:
    """Seconds and peak resident memory of one process."""
    start = time.monotonic()
    with open(log, "wb") as stderr:
        child = subprocess.Popen(command, stdout=stderr, stderr=stderr)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{command[:3]} exited {child.returncode}: {log.read_text()[-500:]}")
    return {"seconds": time.monotonic() - start, "peak_mb": usage.ru_maxrss / 1e3}


def measure(folder: Path, base: Path, adapter: Path, *, rounds: int) -> dict[str, list[dict[str, float]]]:
    subprocess.run(["cat", *map(str, base.iterdir())], stdout=subprocess.DEVNULL, check=True)
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        for name, command in commands(base, adapter, folder / "model").items():
            shutil.rmtree(folder / "model", ignore_errors=True)
            runs.setdefault(name, []).append(run(command, folder / "log"))
    return runs


def table(runs: dict[str, list[dict[str, float]]]) -> list[dict[str, float | str]]:
    ours = statistics.median(one["seconds"] for one in runs["ours"])
    rows = []
    for name, results in runs.items():
        seconds = [one["seconds"] for one in results]
        median, peak = statistics.median(seconds), max(one["peak_mb"] for one in results)
        rows.append(
            {
                "what": name,
                "median_seconds": round(median, 2),
                "fastest": round(min(seconds), 2),
                "slowest": round(max(seconds), 2),
            }
        )
        rows[-1] |= {"times_ours": round(median / ours, 2), "peak_mb": round(peak)}
    return rows


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=768, help="hidden size, a multiple of 256 (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=12, help="number of layers (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--output", default="benchmarks/merge.json", help="JSON with every run (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        in_child(write_models, folder, args.hidden, args.layers)
        base, adapter = folder / "base", folder / "adapter"
        size_gb = sum(path.stat().st_size for path in base.iterdir()) / 1e9
        runs = measure(folder, base, adapter, rounds=args.rounds)
    rows = table(runs)
    print(f"base {size_gb:.2f} GB, {args.rounds} rounds, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'':8}{'median s':>10}{'min':>8}{'max':>8}{'x ours':>8}{'peak MB':>9}")
    for row in rows:
        seconds = f"{row['median_seconds']:>10}{row['fastest']:>8}{row['slowest']:>8}"
        print(f"{row['what']:8}{seconds}{row['times_ours']:>8}{row['peak_mb']:>9}")
    report = {"hidden": args.hidden, "layers": args.layers, "size_gb": round(size_gb, 3), "rows": rows, "runs": runs}
    Path(args.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
