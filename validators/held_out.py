"""Held-out rows of either kind, or of both, as the gates over whole models take them.

--preference-eval, --sft-eval, the model's folder -> rows that training would not leave out for their length
"""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path

from posttrain.config import CheckAlignmentStep, CheckChampionStep, CheckExportStep
from posttrain.rows import chat
from posttrain.rows.formats import read_jsonl

KINDS = ("preference_eval", "sft_eval")  # in the order in which rows are asked

logger = logging.getLogger(__name__)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each kind of rows."""
    parser.add_argument("--sft-eval", help="held-out SFT rows, JSONL")
    parser.add_argument("--preference-eval", help="held-out preference rows, JSONL")


def parse_args(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parses the arguments of a gate, which must name rows of one kind at least."""
    args = parser.parse_args(argv)
    if not any(getattr(args, kind) for kind in KINDS):
        parser.error("pass --preference-eval, --sft-eval or both")
    return args


def read(
    inputs: Mapping[str, str | None], step: CheckAlignmentStep | CheckChampionStep | CheckExportStep, folder: Path
) -> dict[str, list[dict]]:
    """Reads the rows of each kind, none where the gate gets none; `folder`: of a model, for its tokenizer."""
    lengths = {"preference_eval": step.dpo.max_seq_length, "sft_eval": step.sft.max_seq_length}
    return {
        kind: within(folder, read_jsonl(path), length) if (path := inputs.get(kind)) else []
        for kind, length in lengths.items()
    }


def all_of(rows: dict[str, list[dict]]) -> list[dict]:
    """Returns the rows of all kinds, in the order in which they are asked."""
    return [row for kind in KINDS for row in rows[kind]]


def within(folder: Path, rows: list[dict], max_length: int) -> list[dict]:
    """The rows that training does not leave out for their length; all of them where none fits or the tokenizer is
    broken, for a measurement to fail on.

    Args:
        folder: of a model, for its tokenizer.
    """
    from jinja2 import TemplateError

    try:
        tokenizer = chat.ChatTokenizer(folder)
        fitting = [row for row in rows if chat.fits(tokenizer, row, max_length)]
    except (ValueError, TemplateError) as error:
        logger.warning("no held-out row is left out for its length: %s", error)
        return rows
    if len(fitting) < len(rows):
        num_long = len(rows) - len(fitting)
        logger.warning("%d of %d held-out rows left out: longer than %d tokens", num_long, len(rows), max_length)
    return fitting or rows
