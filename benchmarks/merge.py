"""Merge: ours, peft's merge_and_unload + save_pretrained, and `cp -r` of the base as the limit, with and without sync.

shapes -> time and peak memory of each, and how many elements differ between ours and peft's

The base has random bf16 weights in a shape of Qwen2.5; the adapter has r=16 on all linear layers. The base is read once
before, so as much of it as fits is in the page cache; what the side before wrote is on the disk before a side begins.

    python -m benchmarks.merge                          # 0.5B and 1.5B, 3.1 GB; twice that on the disk
    python -m benchmarks.merge --shapes 7B --minutes 15  # 15.2 GB, and as much memory for peft
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.measuring import Runs, Side, Table, build_parser, in_turn, report

SHAPES = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
}
SHARD_BYTES = 4 << 30
OURS = "import sys; from posttrain.merge import merge; merge(*sys.argv[1:])"
PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
PeftModel.from_pretrained(base, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
"""
SYNC = 'target=$1; shift; "$@" && sync -f "$target"'


def sides(folder: Path) -> dict[str, Side]:
    base, adapter, model = (str(folder / name) for name in ("base", "adapter", "model"))
    commands = {
        "ours": [sys.executable, "-c", OURS, base, adapter, model],
        "cp -r": ["cp", "-r", base, model],
        "peft": [sys.executable, "-c", PEFT, base, adapter, model],
    }
    before = partial(clear, folder / "model")
    return {name: Side(command, before=before) for name, command in commands.items()}


def synced(folder: Path, side: Side) -> Side:
    """A side that also waits until everything it wrote is on the disk."""
    return Side(["sh", "-c", SYNC, "sh", str(folder), *side.command], before=side.before)


def clear(model: Path) -> None:
    shutil.rmtree(model, ignore_errors=True)
    os.sync()


def write_models(folder: Path, shape: dict) -> None:
    """Writes base and adapter a shard at a time. Each tensor is a piece of one block of random numbers."""
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM, Qwen2Config

    is_tied = shape["hidden_size"] < 3584
    sizes = {"vocab_size": 151_936, "num_key_value_heads": 2} | shape
    settings = Qwen2Config(tie_word_embeddings=is_tied, dtype="bfloat16", **sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
        tied = {"lm_head.weight"} if is_tied else set()
        tensors = {name: one for name, one in model.state_dict().items() if name not in tied}
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        adapter = get_peft_model(model, lora)
    write_shards(folder / "base", tensors)
    settings.architectures = ["Qwen2ForCausalLM"]
    settings.save_pretrained(folder / "base")
    write_shards(folder / "adapter", get_peft_model_state_dict(adapter), name="adapter_model")
    adapter.peft_config["default"].save_pretrained(folder / "adapter")


def write_shards(folder: Path, shapes: dict, *, name: str = "model") -> None:
    """Random tensors of these shapes and dtypes; an index where one file does not hold them."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    shards: list[dict] = [{}]
    for key, one in shapes.items():
        if sum(other.nbytes for other in shards[-1].values()) + one.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][key] = one
    files = [f"{name}-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [f"{name}.safetensors"]
    else:
        weight_map = {key: file for file, shard in zip(files, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": sum(one.nbytes for one in shapes.values())}, "weight_map": weight_map}
        (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index))
    block = torch.randn(max(one.numel() for one in shapes.values()), generator=torch.Generator().manual_seed(0)) * 0.02
    for file, shard in zip(files, shards, strict=True):
        filled = {
            key: block[: one.numel()].roll(n).to(one.dtype).view(one.shape)
            for n, (key, one) in enumerate(shard.items())
        }
        save_file(filled, folder / file, metadata={"format": "pt"})


def in_child(work, *arguments) -> None:
    """Runs `work` in a new process: this one must stay small."""
    child = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    child.start()
    child.join()
    if child.exitcode:
        raise RuntimeError(f"{work.__name__} exited {child.exitcode}")


def compare(folder: Path, difference: dict[str, float]) -> None:
    """Merges once more, with ours and with peft, and counts the elements that differ."""
    import numpy as np

    from posttrain.weights.tensors import pieces, read_places

    both = []
    for name in ("ours", "peft"):
        subprocess.run(sides(folder)[name].command, check=True, capture_output=True)
        (folder / "model").rename(folder / name)
        both.append(read_places(folder / name))
    ours, peft = both
    assert ours.keys() == peft.keys()
    difference.update(elements=0, differ=0, most=0.0)
    for name, place in ours.items():
        for mine, theirs in zip(pieces(place), pieces(peft[name]), strict=True):
            mine, theirs = (np.frombuffer(piece, np.uint16) for piece in (mine, theirs))
            where = mine != theirs
            difference["elements"] += mine.size
            if where.any():
                values = [(piece[where].astype(np.uint32) << 16).view(np.float32) for piece in (mine, theirs)]
                difference["differ"] += int(where.sum())
                difference["most"] = max(difference["most"], float(np.abs(values[0] - values[1]).max()))


def measure(folder: Path, shape: str, args: argparse.Namespace) -> tuple[Runs, Runs, str]:
    """Without sync, with sync, and how far ours and peft's agree."""
    in_child(write_models, folder, SHAPES[shape])
    subprocess.run(["cat", *map(str, (folder / "base").iterdir())], stdout=subprocess.DEVNULL, check=True)
    plain = in_turn(sides(folder), args)
    with_sync = in_turn({name: synced(folder, side) for name, side in sides(folder).items()}, args)
    clear(folder / "model")
    num_bytes = sum(path.stat().st_size for path in (folder / "base").iterdir())
    if shutil.disk_usage(folder).free < 2.2 * num_bytes:
        return plain, with_sync, f"{shape}: not compared element by element, the disk holds no three copies."
    with multiprocessing.get_context("spawn").Manager() as manager:
        in_child(compare, folder, difference := manager.dict())
        said = f"{shape}: of {difference['elements']:,} elements {difference['differ']:,} differ from peft's"
        return plain, with_sync, f"{said}, by {difference['most']:.2g} at most."


def main(argv: list[str] | None = None) -> None:
    parser = build_parser(__doc__, name="merge", rounds=3, minutes=1.5)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5B", "1.5B"])
    args = parser.parse_args(argv)
    tables, agreement = [], []
    for shape in args.shapes:
        with tempfile.TemporaryDirectory() as name:
            plain, with_sync, said = measure(Path(name), shape, args)
        agreement.append(said)
        tables += [Table(shape, "ours", plain), Table(f"{shape}, until it is on the disk", "ours", with_sync)]
    note = "Random bf16 weights in shapes of Qwen2.5, LoRA r=16 on all linear layers, page cache warm. "
    report(args, note=note + " ".join(agreement), tables=tables)


if __name__ == "__main__":
    main()
