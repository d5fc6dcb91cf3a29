"""Times a cold start of the gate without a model, `python -m validators.data`: from process start to verdict, few rows.

number of rounds (and a tokenizer's folder) -> wall time and CPU seconds of the gate in each shape of the graph

The rows are those of the Task API example (200 SFT rows, 100 preference rows), split as a run splits them. The tiny
tokenizer has 600 tokens; --tokenizer takes a real one, whose file of several MB then has to be read. Two lower bounds
are measured too: an interpreter that does nothing, and the gate's --help, which imports and parses. CPU seconds are
summed over all processes of the gate; on a busy machine they are more telling than the clock.

    python -m benchmarks.cold_start
    python -m benchmarks.cold_start --tokenizer build/function_calling/base
"""

import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.measuring import Side, Table, build_parser, in_turn, report
from examples.task_api.generate import generate
from examples.task_api.tiny import build_tokenizer
from posttrain import data
from posttrain.rows import formats

OUTPUTS = ("verdict", "report", "summary", "metrics", "passed", "manifest")
KINDS = {"sft": ("sft",), "preference": ("preference",), "all": ("sft", "preference")}
STEPS = {"sft": "check_sft_data", "preference": "check_preference_data", "all": "check_data"}


def write_rows(folder: Path) -> int:
    """Writes the four files and gives the number of rows in them."""
    raw = generate(seed=0)
    for kind, name in (("sft", "sft"), ("preference", "preferences")):
        rows, _ = formats.convert(raw[name], kind=kind, source=name)
        for side, part in zip(("train", "eval"), data.split(rows, 0.25), strict=True):
            formats.write_jsonl(folder / f"{kind}_{side}.jsonl", part)
    return len(raw["sft"]) + len(raw["preferences"])


def write_tokenizer(folder: Path, model: Path | None) -> None:
    """The files that a run hands to the gate: no weights, which it would have to hash."""
    if model is None:
        build_tokenizer().save_pretrained(folder)
        return
    folder.mkdir()
    for pattern in ("tokenizer*.json", "chat_template.jinja", "special_tokens_map.json"):
        for file in model.glob(pattern):
            shutil.copy(file, folder)


def gate(folder: Path, tokenizer: Path, shape: str) -> list[str]:
    """The command of a gate in this shape of the graph; with an empty storage root it reuses no verdict."""
    files = [f"{kind}_{side}" for kind in KINDS[shape] for side in ("train", "eval")]
    return [
        sys.executable,
        "-m",
        "validators.data",
        f"--step={STEPS[shape]}",
        f"--tokenizer={tokenizer}",
        *(f"--{name.replace('_', '-')}={folder / name}.jsonl" for name in files),
        *(f"--{name}={folder / 'out' / name}" for name in OUTPUTS),
        f"--storage-root={folder / 'runs'}",
    ]


def sides(folder: Path, tokenizer: Path) -> dict[str, Side]:
    floor = {"python": [sys.executable, "-c", "pass"], "--help": [sys.executable, "-m", "validators.data", "--help"]}
    before, after = partial(shutil.rmtree, folder / "runs", ignore_errors=True), partial(check, folder)
    gates = {STEPS[shape]: Side(gate(folder, tokenizer, shape), before, after) for shape in KINDS}
    return {name: Side(command) for name, command in floor.items()} | gates


def check(folder: Path) -> None:
    if (folder / "out" / "passed").read_text() != "true":
        raise RuntimeError("the gate did not pass: its time is meaningless")


def main(argv: list[str] | None = None) -> None:
    parser = build_parser(__doc__, name="cold_start", rounds=9, minutes=1)
    parser.add_argument("--tokenizer", type=Path, help="a model's folder (default: the example's tiny tokenizer)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_rows = write_rows(folder)
        write_tokenizer(folder / "tokenizer", args.tokenizer)
        runs = in_turn(sides(folder, folder / "tokenizer"), args, warm_up=True)
    note = f"{num_rows} rows; {'a tokenizer of 600 tokens' if args.tokenizer is None else args.tokenizer.name}."
    report(args, note=note, tables=[Table("process", "check_data", runs)])


if __name__ == "__main__":
    main()
