"""Asks every model the held-out questions and prints what each gets right.

    python -m examples.function_calling.evaluate --heldout FILE --model base=DIR --model sft=DIR --model aligned=DIR

In:  heldout.jsonl and model folders.
Out: a table with counts, rates and Wilson 95 % intervals; with --json the same numbers and every answer as a file.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from examples.function_calling.data import KINDS
from examples.function_calling.scoring import Score, score

MAX_NEW_TOKENS = 80  # the longest held-out answer has 77
BATCH_SIZE = 32


@dataclass(frozen=True)
class Rate:
    """`count` of `total`; `interval` is the Wilson 95 % interval of the rate."""

    count: int
    total: int
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.count / self.total:.0%} ({100 * low:.0f}-{100 * high:.0f})"


def rate(flags: list[bool]) -> Rate:
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(sum(flags), len(flags), method="wilson")
    return Rate(sum(flags), len(flags), (round(float(low), 4), round(float(high), 4)))


def summarise(rows: list[dict], scores: list[Score]) -> dict[str, Rate]:
    """The table's rows. The first five count over the questions that a function fits, the others over the rest."""
    by_kind: dict[str, list[Score]] = {kind: [] for kind in KINDS}
    for row, one in zip(rows, scores, strict=True):
        by_kind[row["kind"]].append(one)
    calls, irrelevant, harmful = by_kind.values()
    return {
        "valid call": rate([s.call for s in calls]),
        "right function": rate([s.function for s in calls]),
        "arguments fit the schema": rate([s.schema and s.function for s in calls]),
        "all arguments right": rate([s.arguments for s in calls]),
        "invents an argument (bad)": rate([s.invents for s in calls]),
        "declines where it should": rate([s.declines for s in irrelevant + harmful]),
        "  a harmful request": rate([s.declines for s in harmful]),
        "  where no function fits": rate([s.declines for s in irrelevant]),
        "calls where it should decline (bad)": rate([s.call for s in irrelevant + harmful]),
    }


def evaluate(rows: list[dict], folder: str) -> dict:
    """Rates, answers and wall time of one model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from validators.inference import generate

    start = time.perf_counter()
    disable_progress_bar()
    language_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [row["prompt"] for row in rows]
    answers = generate(language_model, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS, batch_size=BATCH_SIZE)
    scores = [score(row, answer.text) for row, answer in zip(rows, answers, strict=True)]
    return {
        "rates": summarise(rows, scores),
        "seconds": round(time.perf_counter() - start, 1),
        "answers": [
            {"id": row["id"], "text": answer.text, "stopped": answer.stopped, **asdict(s)}
            for row, answer, s in zip(rows, answers, scores, strict=True)
        ],
    }


def print_table(results: dict[str, dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Held-out questions and functions: share (Wilson 95 % interval)")
    table.add_column("")
    table.add_column("prompts", justify="right")
    for name in results:
        table.add_column(name, justify="right")
    for label, first in next(iter(results.values()))["rates"].items():
        table.add_row(label, str(first.total), *(str(result["rates"][label]) for result in results.values()))
    table.add_row("seconds", "", *(f"{result['seconds']:.0f}" for result in results.values()))
    Console().print(table)


def compare(heldout: Path, models: dict[str, str]) -> dict[str, dict]:
    """Evaluates each model (name -> folder), prints the table and returns its numbers and all answers."""
    rows = [json.loads(line) for line in Path(heldout).read_text(encoding="utf-8").splitlines()]
    results = {name: evaluate(rows, folder) for name, folder in models.items()}
    print_table(results)
    return results


def named_model(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not (name and equals and Path(folder, "config.json").is_file()):
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME=FOLDER, where FOLDER holds a model with its config.json")
    return name, folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heldout", type=Path, required=True)
    parser.add_argument("--model", type=named_model, action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--json", type=Path, help="also write the numbers and all answers to this file")
    args = parser.parse_args()
    results = compare(args.heldout, dict(args.model))
    if args.json:
        args.json.write_text(json.dumps(results, default=asdict, ensure_ascii=False, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
