"""Splits held-out rows into those that choose among trials and those that the sweep never looks at, by prompt.

held-out rows -> selection rows, unseen rows

The rows by which a winner is chosen flatter it. The line judges it again on the others.
"""

import argparse
from typing import Any

from posttrain import config, data
from posttrain.config.sweep import HoldOutStep
from posttrain.rows.formats import read_jsonl, write_jsonl
from posttrain.step import frame, kfp_io
from posttrain.step.running import Running


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--eval", required=True, help="held-out rows, JSONL")
    parser.add_argument("--selection", required=True, help="output: rows that choose among trials, JSONL")
    parser.add_argument("--unseen", required=True, help="output: rows for the winner alone, JSONL")
    return parser


def hold_out(rows: list[dict], step: HoldOutStep) -> dict[str, list[dict]]:
    """Returns the rows of both sides. Held-out prompts have the smallest hashes, so that a share of these is a share of
    the rows.

    Raises:
        ValueError: one side would be empty.
    """
    try:
        selection, unseen = data.split(rows, step.data.eval_fraction * step.unseen_fraction)
    except ValueError as error:
        raise ValueError(
            f"{len(rows)} held-out rows are too few for a sweep, raise data.eval_fraction: {error}"
        ) from None
    return {"selection": selection, "unseen": unseen}


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    step = config.parse_step(HoldOutStep, args.config, args.overrides)
    outputs = {"selection": args.selection, "unseen": args.unseen}

    def work(_: Running) -> dict[str, Any]:
        sides = hold_out(read_jsonl(args.eval), step)
        for name, rows in sides.items():
            write_jsonl(outputs[name], rows)
        return {f"num_{name}_rows": len(rows) for name, rows in sides.items()}

    frame.run_step(args, inputs={"eval": args.eval}, outputs=outputs, config=step, work=work)


if __name__ == "__main__":
    main()
