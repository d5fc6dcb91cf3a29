"""Growth: prepare_data and the gate on data, near-duplicate search included, at 1x, 4x and 16x rows.

numbers of rows -> wall time and peak memory of both steps at each

Each row asks 10 to 50 words drawn from 5,000 and answers with 5 to 30; one in a hundred is nearly the one before it. A
ratio equal to that of the rows says that time grows linearly.

    python -m benchmarks.growth
    python -m benchmarks.growth --rows 1000000 --minutes 20 --output benchmarks/results/growth_million.json
"""

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.cold_start import OUTPUTS, STEPS, write_tokenizer
from benchmarks.measuring import Runs, Side, Table, build_parser, in_turn, report

WORDS = [f"{first}{second}" for first in ("ba", "de", "ki", "lo", "mu") for second in range(1000)]
FILES = ("train", "eval", "statistics", "manifest")


def rows(num: int) -> Iterator[dict]:
    rng, words = random.Random(0), []
    for number in range(num):
        words = [*words, "more"] if number % 100 == 99 else rng.choices(WORDS, k=rng.randint(10, 50))
        yield {"prompt": " ".join(words), "completion": " ".join(rng.choices(WORDS, k=rng.randint(5, 30)))}


def write_rows(folder: Path, num: int) -> None:
    (folder / "out").mkdir(parents=True)
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(num))


def prepare(folder: Path) -> Side:
    outputs = [f"--{name}={folder / name}.jsonl" for name in FILES]
    return Side([
        sys.executable, "-m", "posttrain.data", "--step=prepare_sft_data", f"--storage-root={folder / 'root'}",
        f"--dataset={folder / 'rows.jsonl'}", "--kind=sft", *outputs,
    ])  # fmt: skip


def gate(folder: Path) -> Side:
    command = [
        sys.executable, "-m", "validators.data", f"--step={STEPS['sft']}", f"--tokenizer={folder.parent / 'tokenizer'}",
        f"--sft-train={folder / 'train.jsonl'}", f"--sft-eval={folder / 'eval.jsonl'}",
        f"--storage-root={folder / 'root'}", *(f"--{name}={folder / 'out' / name}" for name in OUTPUTS),
    ]  # fmt: skip
    return Side(command, before=partial(shutil.rmtree, folder / "root", ignore_errors=True))  # reuses no verdict


def main(argv: list[str] | None = None) -> None:
    parser = build_parser(__doc__, name="growth", rounds=2, minutes=2)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 40_000, 160_000])
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        write_tokenizer(Path(name, "tokenizer"), None)
        folders = {f"{num:,} rows": Path(name, str(num)) for num in args.rows}
        for num, folder in zip(args.rows, folders.values(), strict=True):
            write_rows(folder, num)
        timed: list[Runs] = [in_turn({at: step(at_) for at, at_ in folders.items()}, args) for step in (prepare, gate)]
        size = (folders[f"{args.rows[-1]:,} rows"] / "rows.jsonl").stat().st_size / 1e6
    tables = [
        Table(step, next(iter(folders)), runs) for step, runs in zip(("prepare_data", "check_data"), timed, strict=True)
    ]
    report(args, note=f"{args.rows[-1]:,} rows are {size:,.0f} MB of JSON Lines.", tables=tables)


if __name__ == "__main__":
    main()
