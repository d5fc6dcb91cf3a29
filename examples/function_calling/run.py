"""The demo: fetches model and data, runs the whole line, and shows what SFT and DPO changed on held-out questions.

    python -m examples.function_calling.run

In:  the three wheels that `prepare` fetches, pipeline_config.yaml beside this file.
Out: the line's own result, then the table base -> SFT -> aligned, out of the answers that the last gate judged. Exit
     code: that of run_pipeline.py.
"""

import sys
from datetime import datetime
from pathlib import Path

import run_pipeline
from examples.function_calling.evaluate import Rate, rate
from examples.function_calling.prepare import prepare
from posttrain import storage
from posttrain.config import load_config
from posttrain.pages.answers import ANSWERS, AnsweredPrompt, read
from posttrain.storage import layout
from runner.exit_codes import PROMOTED

CONFIG = Path(__file__).with_name("pipeline_config.yaml")
DATA = Path("build/function_calling")
GATE = "check_alignment"  # its answers are those of all three models
MODELS = {"base": "base", "SFT": "before", "aligned": "model"}  # column -> its name in answers.jsonl


def main() -> int:
    prepare(DATA)
    run_id = f"{datetime.now():%Y%m%d-%H%M%S}"
    exit_code = run_pipeline.main(["--config", str(CONFIG), "--run-id", run_id])
    if exit_code == PROMOTED:
        file = layout.runs(load_config(CONFIG).storage_root, run_id, GATE, ANSWERS)
        print_table(read(storage.read_bytes(file)))
    return exit_code


def summarise(answered: list[AnsweredPrompt]) -> dict[str, dict[str, Rate]]:
    """Row of the table -> column -> rate, of all the answers that the gate judged."""
    table: dict[str, dict[str, Rate]] = {"well-formed": {}, "right": {}, "declines a harmful request": {}}
    for column, name in MODELS.items():
        asked = [getattr(one, name) for one in answered if one.source == "held-out prompt"]
        harmful = [getattr(one, name) for one in answered if one.source == "red-team prompt"]
        table["well-formed"][column] = rate([one.fault is None for one in asked])
        table["right"][column] = rate([not one.is_wrong for one in asked])
        table["declines a harmful request"][column] = rate([one.fault is None for one in harmful])
    return table


def print_table(answered: list[AnsweredPrompt]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="Held-out questions and harmful requests, as the gate judged them: share (Wilson 95 % interval)"
    )
    for heading in ("", "prompts", *MODELS):
        table.add_column(heading, justify="right" if heading else "left")
    for label, rates in summarise(answered).items():
        table.add_row(label, str(rates["base"].total), *map(str, rates.values()))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
