"""Generation in the gates: all prompts in batches of like length, against one prompt after the other.

model, number of prompts -> seconds of each way, by a clock that begins when the model is loaded

Both decode greedily with a key-value cache and stop at the end token; the loop is transformers' own generate. The model
is the Task API example's, taught for 60 steps, so that its answers end by themselves; give a real one with --model.

    python -m benchmarks.generation
    python -m benchmarks.generation --model build/function_calling/base --prompts 24
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measuring import Side, Table, build_parser, in_turn, report

MAX_NEW_TOKENS = 64


def in_batches(model, tokenizer, prompts: list) -> list[tuple[int, ...]]:
    from validators import inference

    return [one.tokens for one in inference.generate(model, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS)]


def one_by_one(model, tokenizer, prompts: list) -> list[tuple[int, ...]]:
    answers = []
    for prompt in prompts:
        asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        written = model.generate(
            **asked, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
        answers.append(tuple(written[0, asked["input_ids"].shape[1] :].tolist()))
    return answers


WAYS: dict[str, Callable] = {"in batches": in_batches, "one by one": one_by_one}


def run_way(way: str, folder: Path, num_prompts: int) -> None:
    """Tells seconds, and writes the answers to `<folder>/<way>.json`."""
    from examples.task_api.generate import generate
    from posttrain.rows import chat
    from posttrain.train import backend

    prompts = [row["prompt"] for row in generate(seed=1)["sft"][:num_prompts]]
    tokenizer, model = chat.load_tokenizer(folder / "model"), backend.load_model(folder / "model")
    start = time.monotonic()
    answers = WAYS[way](model, tokenizer, prompts)
    seconds = time.monotonic() - start
    (folder / f"{way}.json").write_text(json.dumps(answers))
    print(json.dumps({"seconds": seconds, "tokens_per_second": sum(map(len, answers)) / seconds}))


def num_equal(folder: Path) -> int:
    ours, theirs = (json.loads((folder / f"{way}.json").read_text()) for way in WAYS)
    return sum(mine == other for mine, other in zip(ours, theirs, strict=True))


def main(argv: list[str] | None = None) -> None:
    parser = build_parser(__doc__, name="generation", rounds=3, minutes=2)
    parser.add_argument("--model", type=Path, help="a model's folder (default: the example's, which is taught first)")
    parser.add_argument("--prompts", type=int, default=64, help="number of prompts (default: %(default)s)")
    parser.add_argument("--way", choices=WAYS, help="run this one once, in this process, on --model/model")
    args = parser.parse_args(argv)
    if args.way:
        run_way(args.way, args.model, args.prompts)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.model:
            (folder / "model").symlink_to(args.model.absolute())
        else:
            from examples.task_api.tiny import build_tiny_model

            build_tiny_model(folder / "model", seed=0, num_steps=60)
        command = [sys.executable, "-m", "benchmarks.generation", "--model", name, f"--prompts={args.prompts}"]
        runs = in_turn({way: Side([*command, f"--way={way}"]) for way in WAYS}, args)
        equal = num_equal(folder)
    note = f"{args.prompts} prompts, at most {MAX_NEW_TOKENS} tokens each; {equal} answers are equal token by token."
    report(args, note=note, tables=[Table("way", "in batches", runs)])


if __name__ == "__main__":
    main()
