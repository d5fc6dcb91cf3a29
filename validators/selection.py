"""Scores an adapter's answers to rows that a training has set aside, to choose among its checkpoints.

base model, adapter folder, rows, how answers are generated and compared -> their scores, JSON

A training starts it as a command: what meets the text of a model is a process of its own.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from posttrain import config
from posttrain.rows.formats import read_jsonl
from posttrain.step.run import configure_logging
from validators import checks, content, measuring
from validators.answers import JudgedAnswer
from validators.session import Session


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The answers, as they come from the measuring process."""

    answers: list[JudgedAnswer] | None = None


def scores(base: Path, adapter: Path, rows: list[dict], rule: config.Selection) -> list[float]:
    """The score of the answer to each row, by `answer_match`; 0 for one that is ill-formed.

    Raises:
        RuntimeError: they could not be generated or scored.
    """
    rank = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"]

    def answer() -> dict[str, list[JudgedAnswer]]:
        session = Session(rule)
        session.load(base, adapter, rank=rank)
        return {"answers": session.answer([row["prompt"] for row in rows])}

    measured = measuring.in_order({"answers_generated": answer}, checks.timeouts(rule))
    judged = measuring.whole(measured).read(Numbers).answers
    references = content.references_by_row(rows, rows)
    scored, measured = content.score(content.Content(references=references, model=judged), rule)
    measuring.whole(measured)
    return [0.0 if one.fault else score for one, score in zip(judged, scored.scores["model"], strict=True)]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of the model that is trained")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the adapter")
    parser.add_argument("--rows", type=Path, required=True, help="rows set aside, JSONL")
    parser.add_argument("--config", required=True, help="how answers are generated and compared, JSON")
    parser.add_argument("--output", type=Path, required=True, help="output: scores, JSON")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    configure_logging()
    rule = config.Selection.model_validate_json(args.config)
    accuracies = scores(args.base, args.adapter, read_jsonl(args.rows), rule)
    args.output.write_text(json.dumps(accuracies), encoding="utf-8")


if __name__ == "__main__":
    main()
