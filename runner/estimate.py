"""Estimates before a run what its trainings and gates will cost on this machine, from a few measured steps of each.

parsed command line -> a table: rows, tokens, time and peak memory of each step

    python run_pipeline.py --estimate --config FILE ...

The settings are those of the compiled graph, the base model stands in for those that the run will make. What takes
little beside these steps is left out: fetching, preparing data, merging, publishing.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipelines.package import Package
from posttrain import data, model, preflight, storage
from posttrain.config import CheckSftStep, DpoStep, LoraTraining, SftStep, StepSection
from posttrain.config.line import STEPS, TRAININGS
from posttrain.pages import wording
from posttrain.rows.formats import prompt_key
from posttrain.train import evaluations
from posttrain.train.stage import schedule
from runner import plan, timing
from runner.here import compile_unplaced
from runner.parameters import local_folder
from runner.request import RunRequest
from runner.timing import Rows, TimedAnswers, TimedTraining
from validators.answers import choose_prompts, choose_rows

KINDS = {"sft": "sft_dataset", "preference": "preference_dataset"}
# Gate -> how many models answer the held-out prompts.
MODELS = {"check_sft": 2, "check_safety": 2, "check_alignment": 3, "check_champion": 2}


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    step: str
    what: str  # rows, or answers
    num_tokens: float
    seconds: float
    memory: int  # bytes
    gpu_memory: int = 0


@dataclass
class Reading:
    """The rows of a run by kind and side, and the number of prompts of each file that gates ask."""

    rows: dict[str, Rows] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, dataset: str, settings: Any) -> None:
        """Reads a data set."""
        rows: Rows = {side: [] for side in data.SIDES}
        data.prepare(dataset, kind=kind, settings=settings, write=lambda side, row: rows[side].append(row))
        self.rows[kind] = rows

    @property
    def held_out(self) -> list[dict]:
        return [row for rows in self.rows.values() for row in rows["eval"]]


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and returns the exit code."""
    request = RunRequest.read(args)
    counted = preflight.Counted.of(request.config)
    disk = local_folder(request.storage_root)
    preflight.refuse(preflight.findings(request.config, request.parameters, disk=disk, counted=counted))
    with tempfile.TemporaryDirectory(prefix="estimate-") as folder:
        compile_unplaced(request, Path(folder, "graph.yaml"))
        sections = dict(plan.sections(Package.read(Path(folder, "graph.yaml")), request.parameters["overrides"]))
        reading = read(request, dict(counted.asked))
        base = bring(request, Path(folder))
        lines = measure(sections, base, reading)
    print_lines(lines)
    return 0


def read(request: RunRequest, asked: dict[str, int]) -> Reading:
    """Reads the data sets of a run. Pairs that it will sample are made of SFT rows, one for each prompt at most."""
    config, reading = request.config, Reading(asked=asked)
    for kind in (kind for kind, name in KINDS.items() if name in preflight.datasets(config)):
        reading.add(kind, request.parameters[KINDS[kind]], config.data)
    if config.stages.pairs.enabled:
        pairs = reading.rows.setdefault("preference", {side: [] for side in data.SIDES})
        for side, some in reading.rows["sft"].items():
            pairs[side] += sampled(some, config.pairs.max_prompts)
    return reading


def sampled(rows: list[dict], max_prompts: int | None) -> list[dict]:
    """Returns pairs like those that will be sampled for the prompts of these rows, in number and length."""
    chosen = choose_rows(rows, max_prompts or len(rows))
    others = [*chosen[1:], *chosen[:1]]
    return [
        {"id": row["id"], "prompt": row["prompt"], "chosen": row["completion"], "rejected": other["completion"]}
        for row, other in zip(chosen, others, strict=True)
    ]


def bring(request: RunRequest, folder: Path) -> Path:
    """Returns a local folder with the base model."""
    address = request.parameters["base_model"]
    if storage.kind(address) == "local":
        return storage.local_path(address)
    model.fetch(address, folder / "base", folder / "tokenizer", allowed_prefixes=request.config.prefixes)
    return folder / "base"


def measure(sections: dict[str, StepSection], base: Path, reading: Reading) -> list[Line]:
    """Measures each training and the answers of the gates, and returns a line for each step."""
    trainings = {step: section for step, section in sections.items() if step in TRAININGS}
    lines = {}
    for step, section in trainings.items():
        say(f"{step}: timing {timing.NUM_STEPS} optimizer steps")
        rows = reading.rows["sft" if TRAININGS[step] == "sft" else "preference"]
        lines[step] = training_line(step, section, timing.time_training(step, section, base, rows))
    asked = {step: num_answers(step, section, reading) for step, section in sections.items()}
    if gates := {step: number for step, number in asked.items() if number}:
        say(f"gates: timing {timing.NUM_ANSWERS} answers")
        section = CheckSftStep(validation=answering(sections, gates))
        timed = timing.time_answers(section, base, choose_prompts(reading.held_out, timing.NUM_ANSWERS))
        lines |= {step: answers_line(step, number, timed) for step, number in gates.items()}
    return [lines[step] for step in STEPS if step in lines]


def training_line(step: str, section: SftStep | DpoStep, timed: TimedTraining) -> Line:
    """Computes the cost of a whole training."""
    config: LoraTraining = getattr(section, TRAININGS[step])
    *_, num_steps = schedule(config, num_train_rows=timed.num_rows)
    on_the_way = evaluations.affordable_rows(timed.num_rows, timed.num_eval_rows, epochs=config.epochs)
    num_evaluations = len(evaluations.steps_of(num_steps, num_rows=on_the_way))
    seconds = timed.seconds(
        num_steps=num_steps,
        num_saves=1 + num_steps // min(config.save_steps, section.training.checkpoint_every_n_steps),
        num_evaluated=timed.num_eval_rows + num_evaluations * on_the_way,
    )
    passes = "pass" if config.epochs == 1 else "passes"
    what = f"{timed.num_rows:,} rows, {config.epochs:g} {passes}, {num_steps:,} steps"
    return Line(step, what, timed.num_tokens * config.epochs, seconds, timed.memory, timed.gpu_memory)


def num_answers(step: str, section: StepSection, reading: Reading) -> int:
    """Returns how many answers of models a step takes, by the prompts that it asks; 0: none, or it is not estimated."""
    if step == "sample_pairs":
        prompts = len({prompt_key(row) for rows in reading.rows["sft"].values() for row in rows})
        return section.pairs.num_answers * min(prompts, section.pairs.max_prompts or prompts)
    if step not in MODELS:
        return 0
    limits, rows = section.validation, reading.rows["sft"]["eval"] if step == "check_sft" else reading.held_out
    number = MODELS[step] - (step == "check_alignment" and "sft" not in reading.rows)
    total = number * len(choose_prompts(rows, limits.num_generated_answers))
    if step in ("check_safety", "check_alignment"):
        asked = {key.removesuffix("_prompts"): num for key, num in reading.asked.items()}
        total += number * asked.get("red_team", 0) + asked.get("off_topic", 0) + asked.get("benign", 0)
        total += 2 * len(limits.suites) * limits.skill_rows
    return total


def answering(sections: dict[str, StepSection], gates: dict[str, int]) -> Any:
    """Returns limits with which the gates have answers generated; they are the same for all."""
    limits = sections[next(iter(gates))].validation
    same = CheckSftStep().validation.__class__.model_fields.keys() & limits.__class__.model_fields.keys()
    return CheckSftStep().validation.model_copy(update={name: getattr(limits, name) for name in same})


def answers_line(step: str, number: int, timed: TimedAnswers) -> Line:
    """Computes the cost of a step by its answers."""
    seconds = timed.imports + MODELS.get(step, 1) * timed.load + number * timed.answer
    tokens = number * timed.num_tokens
    return Line(step, f"{number:,} answers", tokens, seconds, timed.memory, timed.gpu_memory)


def print_lines(lines: list[Line], stream: TextIO | None = None) -> None:
    """Prints the table, and what all of it takes."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title, justify in (("Step", "left"), ("Reads or writes", "left"), ("Tokens", "right"), ("Time", "right")):
        table.add_column(title, justify=justify, no_wrap=True)
    columns: dict[str, Callable[[Line], int]] = {"Memory": lambda line: line.memory}
    if any(line.gpu_memory for line in lines):
        columns["GPU memory"] = lambda line: line.gpu_memory
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for line in lines:
        memory = [f"{value(line) / 1e9:.2g} GB" for value in columns.values()]
        table.add_row(line.step, line.what, f"{round(line.num_tokens):,}", wording.duration(line.seconds), *memory)
    stream = stream or sys.stdout
    Console(file=stream, width=110).print(table)
    seconds = sum(line.seconds for line in lines)
    hours = f" and {seconds / 3600:.2g} GPU hours" if "GPU memory" in columns else ""
    print(f"Total: about {wording.duration(seconds)}{hours}, with one process on this machine.", file=stream)
    print("Measured with the base model, which seldom ends an answer on its own: a trained one is faster.", file=stream)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
