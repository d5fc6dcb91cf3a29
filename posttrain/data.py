"""Prepare a data set: read it, convert it, split it so that training and evaluation never share a prompt.

URI (path, gs://, s3://, Hub id) -> train and eval JSONL, statistics.json, manifest.json (hashes of each side's prompts)

Which side a row is on depends on its normalised prompt and the fraction alone. So the SFT and the preference data agree
when split with the same fraction: no training row of one shares its prompt with an evaluation row of the other.
"""

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path

from posttrain import config, kfp_io, record, storage
from posttrain.chat import load_tokenizer, num_answer_tokens, num_trainable_tokens, render
from posttrain.rows import (
    ANSWER_KEYS,
    check_row,
    content_key,
    convert,
    empty_key,
    prompt_key,
    read_jsonl,
    user_text,
    write_jsonl,
)
from posttrain.sources import read_data_set, read_rows

__all__ = [
    "ANSWER_KEYS",
    "check_row",
    "content_key",
    "convert",
    "empty_key",
    "load_tokenizer",
    "num_answer_tokens",
    "num_trainable_tokens",
    "prepare",
    "prompt_key",
    "read_jsonl",
    "read_rows",
    "render",
    "split",
    "user_text",
    "write_jsonl",
]

SALT = "posttrain-split-1"  # another salt deals all prompts out anew


def is_held_out(key: str, eval_fraction: float) -> bool:
    """Whether the prompt with this key belongs to the evaluation side."""
    dealt = hashlib.sha256(f"{SALT}:{key}".encode()).digest()
    return int.from_bytes(dealt[:8]) < eval_fraction * 2**64


def split(rows: list[dict], eval_fraction: float) -> tuple[list[dict], list[dict]]:
    """Training and evaluation rows, each in the order of `rows`. Rows with the same normalised prompt stay together.

    Raises:
        ValueError: one side would be empty.
    """
    sides = {False: [], True: []}
    for row in rows:
        sides[is_held_out(prompt_key(row), eval_fraction)].append(row)
    for held_out, name in ((False, "training"), (True, "evaluation")):
        if not sides[held_out]:
            num_prompts = len({prompt_key(row) for row in rows})
            raise ValueError(
                f"eval_fraction {eval_fraction} leaves no {name} rows of {len(rows)} ({num_prompts} prompts): "
                f"{'raise' if held_out else 'lower'} data.eval_fraction or give more different prompts"
            )
    return sides[False], sides[True]


def prepare(dataset: str, *, kind: str, settings: config.DataConfig) -> dict:
    """Reads, converts and splits: {"train": rows, "eval": rows, "statistics": ..., "manifest": ..., "source": ...}.

    Raises:
        ValueError: on one line, naming place, row, key, value and remedy.
    """
    found = read_data_set(dataset, hub_subset=settings.hub_subset, hub_split=settings.hub_split)
    raw = found.rows
    rows, format_name = convert(raw, kind=kind, source=dataset)
    try:
        train, held_out = split(rows, settings.eval_fraction)
    except ValueError as error:
        raise ValueError(f"{dataset}: {error}") from None
    sides = {"train": train, "eval": held_out}
    used = {"id", "messages", "prompt", *ANSWER_KEYS[kind]}
    statistics = {
        "kind": kind,
        "format": format_name,
        "num_input_rows": len(raw),
        "num_rows": len(rows),
        "num_duplicate_rows": num_duplicates(rows),
        "dropped_keys": sorted({key for row in raw for key in row} - used),
        **{name: side_statistics(side, kind) for name, side in sides.items()},
    }
    manifest = {
        "kind": kind,
        "salt": SALT,
        "eval_fraction": settings.eval_fraction,
        **{name: sorted({prompt_key(row) for row in side}) for name, side in sides.items()},
    }
    source = {"source": dataset, "commit": found.commit, "digest": found.digest}
    return {**sides, "statistics": statistics, "manifest": manifest, "source": source}


def num_duplicates(rows: list[dict]) -> int:
    """Rows that repeat an earlier one word by word, whatever their ids."""
    return len(rows) - len({content_key(row) for row in rows})


def side_statistics(rows: list[dict], kind: str) -> dict:
    keys = ("prompt", *ANSWER_KEYS[kind])
    lengths = {key: [sum(len(message["content"]) for message in row[key]) for row in rows] for key in keys}
    roles = Counter(message["role"] for row in rows for key in keys for message in row[key])
    return {
        "num_rows": len(rows),
        "num_prompts": len({prompt_key(row) for row in rows}),
        "roles": dict(sorted(roles.items())),
        "chars": {
            key: {"mean": round(sum(found) / len(found), 1), "max": max(found)} for key, found in lengths.items()
        },
    }


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__doc__)
    parser.add_argument("--dataset", required=True, help="path, gs://, s3:// or Hub id owner/name[@revision]")
    parser.add_argument("--kind", required=True, choices=sorted(ANSWER_KEYS))
    parser.add_argument("--train", required=True, help="output: training rows, JSONL")
    parser.add_argument("--eval", required=True, help="output: evaluation rows, JSONL")
    parser.add_argument("--statistics", required=True, help="output: statistics, JSON")
    parser.add_argument("--manifest", required=True, help="output: hashes of the prompts of each side, JSON")
    return parser


def write(prepared: dict, outputs: dict[str, str]) -> None:
    for name in ("train", "eval"):
        write_jsonl(outputs[name], prepared[name])
    for name in ("statistics", "manifest"):
        Path(outputs[name]).write_text(json.dumps(prepared[name], indent=2) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    step = config.parse_step(config.PrepareStep, args.config, args.overrides)
    outputs = {name: getattr(args, name) for name in ("train", "eval", "statistics", "manifest")}

    def work() -> dict:
        storage.check_allowed(args.dataset, step.allowed_prefixes, name="dataset")
        prepared = prepare(args.dataset, kind=args.kind, settings=step.data)
        write(prepared, outputs)
        statistics = prepared["statistics"]
        return {
            **prepared["source"],
            "format": statistics["format"],
            "num_train_rows": statistics["train"]["num_rows"],
            "num_eval_rows": statistics["eval"]["num_rows"],
            "num_duplicate_rows": statistics["num_duplicate_rows"],
        }

    # What lies at an address may change: it is read each time, and the same rows give the same outputs.
    record.run_step(args, inputs={}, outputs=outputs, config=step, work=work, reusable=False)


if __name__ == "__main__":
    main()
