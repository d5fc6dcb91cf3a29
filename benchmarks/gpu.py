"""Training on a GPU: our stages, trl at its best and unsloth, on the same rows; merging, and checkpoints at every step.

parts -> <output>/gpu_<part>.json for each, written anew after every side; a line on stdout for every side

    python -m benchmarks.gpu                             # everything, about 10 minutes on one H100
    python -m benchmarks.gpu --parts sft --sides ours    # some of it
    python -m benchmarks.gpu --tiny                      # a rehearsal: tiny models, on a CPU too

Models have the shapes of the named ones and random weights, made on the GPU. LoRA r=16 on all linear layers, bfloat16,
no gradient checkpointing. Each side runs in a process of its own.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from benchmarks import merge, table
from benchmarks.gpu_rows import SHAPES
from benchmarks.gpu_side import Settings
from benchmarks.measuring import Numbers, Runs, Side, Table, report, run
from posttrain.config.placement import BACKEND_ENV

SIDE_SECONDS = 240  # after which a side is given up
SFT = Settings("sft", "Qwen2.5-7B", "full", max_length=4096, batch_size=2, accumulation=16, steps=2, warm_up=1)
SHORT = replace(SFT, lengths="real", max_length=256, batch_size=64, accumulation=1, steps=12, warm_up=4)
DPO = Settings("dpo", "Llama-3.2-1B", "mixed", max_length=1024, batch_size=8, accumulation=2, steps=5, warm_up=1)
SAVING = replace(SFT, accumulation=4, steps=5)
LAYERS = 8  # of a model to merge, unless --layers names more
REHEARSED = Path("build", "gpu")  # figures of tiny models do not belong among the results


@dataclass(frozen=True)
class One:
    """A side: who trains, and how."""

    who: str  # ours, trl or unsloth
    settings: Settings


@dataclass(frozen=True)
class Part:
    """One comparison. The first side is ours."""

    title: str
    note: str
    sides: dict[str, One]
    compared: str = "tokens_per_second"


def at_best(settings: Settings) -> dict[str, One]:
    """Ours, trl with its fused kernels, and unsloth."""
    return {
        "ours": One("ours", settings),
        "trl, liger": One("trl", replace(settings, liger=True)),
        "unsloth": One("unsloth", settings),
    }


def parts() -> dict[str, Part]:
    full = "Rows of 4,096 tokens, 2 at once, 16 times for an optimizer step. Public bar on one H100, NeMo AutoModel:"
    num_rows = SHORT.batch_size * SHORT.steps
    packed = replace(SHORT, max_length=4096, batch_size=2, packing=True, liger=True, num_rows=num_rows)
    saved = {"none": One("ours", SAVING), "at every step": One("ours", replace(SAVING, save_steps=1))}
    plain = {"trl": One("trl", SFT)}
    return {
        "sft": Part("SFT, Qwen2.5-7B", f"{full} 14,110 tokens a second.", at_best(SFT) | plain),
        "dpo": Part(
            "DPO, Llama-3.2-1B",
            "Pairs of at most 1,024 tokens, 8 at once; the reference is computed before the clock starts. Bar, full "
            "fine-tuning with NeMo-RL: 12.3 pairs a second and GPU. Tokens are those of both sequences.",
            at_best(DPO) | {"ours, all of 1,024 tokens": One("ours", replace(DPO, lengths="full"))},
            compared="pairs_per_second",
        ),
        "short_rows": Part(
            "SFT, Qwen2.5-7B, rows of 126 tokens",
            "As long as the rows of the function-calling example, 64 at once; trl packs them into two sequences of "
            "4,096 with flex_attention. Tokens are those of the rows, without padding.",
            {
                "ours": One("ours", SHORT),
                "trl, packed, liger": One("trl", packed),
                "trl, liger": One("trl", replace(SHORT, liger=True)),
                "unsloth": One("unsloth", SHORT),
            },
        ),
        "sft_llama": Part(
            "SFT, Llama-3.1-8B", f"{full} 12,473 tokens a second.", at_best(replace(SFT, shape="Llama-3.1-8B"))
        ),
        "checkpoints": Part(
            "checkpoints",
            "SFT, Qwen2.5-7B, rows of 4,096 tokens, 2 at once, 4 times for an optimizer step; to the local disk.",
            saved,
            compared="seconds",
        ),
    }


def tiny(one: One) -> One:
    """Returns the same measurement of a tiny model on short rows."""
    short = {"max_length": 128, "batch_size": 4, "accumulation": 2, "steps": 3, "warm_up": 1, "shape": "tiny"}
    short |= {"max_length": 256} if one.settings.lengths == "real" else {}
    return replace(one, settings=replace(one.settings, **short))


def command(one: One) -> Side:
    """The side's process. Ours trains with peft, also where unsloth is installed."""
    backend = "unsloth" if one.who == "unsloth" else "peft"
    python = ["timeout", str(SIDE_SECONDS), sys.executable, "-W", "ignore", "-m", "benchmarks.gpu_side"]
    # Else gaps between tensors may make a batch that fits run out of memory.
    env = {BACKEND_ENV: backend, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    return Side([*python, one.who, json.dumps(asdict(one.settings))], env=env)


def measure(names: list[str], args: argparse.Namespace) -> None:
    """Runs the sides of these parts, our own and the best other one of each part first, as long as the time allows.

    One that fails does not keep the others back.
    """
    begun, chosen, runs = time.monotonic(), parts(), {name: {} for name in names}
    taken: dict[str, list[str]] = {name: [] for name in names}
    places = [(name, number, side) for name in names for number, side in enumerate(chosen[name].sides)]
    for name, _, side in sorted(places, key=lambda place: place[1] > 1):
        part = chosen[name]
        one = part.sides[side]
        is_late = time.monotonic() - begun > 60 * args.minutes
        if is_late or one.who not in args.sides or (one.who == "unsloth" and not find_spec("unsloth")):
            continue
        if numbers := attempt(f"{name}, {side}", command(tiny(one) if args.tiny else one)):
            taken[name].append(numbers.pop("shortcuts", ""))
            runs[name][side] = [numbers]
            note = " ".join([part.note, *(f"Our shortcuts: {text}." for text in dict.fromkeys(taken[name]) if text)])
            keep(name, part.title, note, runs[name], args, compared=part.compared)


def attempt(name: str, side: Side) -> Numbers | None:
    """Runs a side, and prints what it measured, or why it could not."""
    started = time.monotonic()
    try:
        numbers = run(side)
    except RuntimeError as error:
        print(f"{name}: FAILED: {error}", flush=True)
        return None
    shown = ", ".join(
        f"{key} {value or 'none' if isinstance(value, str) else table.shown(value)}" for key, value in numbers.items()
    )
    print(f"{name}: {shown}; {time.monotonic() - started:.0f} s in all", flush=True)
    return numbers


def keep(name: str, title: str, note: str, runs: Runs, args: argparse.Namespace, *, compared: str) -> None:
    """Writes what is measured so far. The ratios are to our side, or to the first one if ours failed."""
    own = argparse.Namespace(title=f"On a GPU: {title}", output=args.output / f"gpu_{name}.json", tiny=args.tiny)
    report(own, note=note, tables=[Table(title, next(iter(runs)), runs, compared)], quiet=True)


def measure_merge(args: argparse.Namespace) -> None:
    """Merges a model of Llama-3.1-8B's sizes with ours, with cp and with peft, until it is on the disk."""
    _, sizes = SHAPES["tiny" if args.tiny else "Llama-3.1-8B"]
    layers = min(args.layers, sizes["num_hidden_layers"])
    kept = {name: sizes[name] for name in sizes if name not in ("rms_norm_eps", "tie_word_embeddings")}
    runs: Runs = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        merge.in_child(merge.write_models, folder, kept | {"num_hidden_layers": layers})
        for side, one in merge.sides(folder).items():
            numbers = attempt(f"merge, {side}", merge.synced(folder, one))
            if numbers:
                runs[side] = [numbers]
                note = f"Sizes of Llama-3.1-8B with {layers} of its 32 layers, bf16, until it is on the disk."
                keep("merge", "merge", note, runs, args, compared="seconds")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*parts(), "merge"]
    parser.add_argument("--parts", nargs="+", choices=names, default=names, help="in this order (default: all)")
    everyone = ["ours", "trl", "unsloth"]
    parser.add_argument("--sides", nargs="+", choices=everyone, default=everyone, help="(default: all)")
    parser.add_argument("--minutes", type=float, default=10, help="begin no side later (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the model to merge (default: %(default)s of 32)")
    parser.add_argument("--folder", type=Path, help="where the models to merge are written (default: as tempfile does)")
    parser.add_argument("--output", type=Path, help=f"folder of JSON (default: {table.RESULTS}; tiny: {REHEARSED})")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to rehearse")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    args.output = args.output or (REHEARSED if args.tiny else table.RESULTS)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    measure([name for name in args.parts if name != "merge"], args)
    if "merge" in args.parts:
        measure_merge(args)


if __name__ == "__main__":
    main()
