"""Estimates what the steps of a run will cost, from what they cost in the newest run with the same base model.

records of earlier runs, what each training will read -> rows, tokens, time and memory of each step, in words

A training is assumed to take as long per row as it did then, any other step as long as it did. With another row length,
batch size or machine that is off, so the words name the run that the figures come from.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from posttrain import storage
from posttrain.pages import wording
from posttrain.step.records import StepRecord


@dataclass(frozen=True)
class Load:
    """Amount of data that a training will read."""

    num_rows: int
    epochs: float
    tokens_per_row: float | None = None  # None: not counted

    @property
    def words(self) -> str:
        tokens = "" if self.tokens_per_row is None else f", about {round(self.num_rows * self.tokens_per_row):,} tokens"
        return f"{self.num_rows:,} rows{tokens}, {self.epochs:g} {'pass' if self.epochs == 1 else 'passes'}"


@dataclass(frozen=True)
class Cost:
    """Cost of a step in an earlier run, or its expected cost."""

    seconds: float
    memory: int  # bytes, of the largest process
    num_gpus: int
    run_id: str

    @property
    def gpu_hours(self) -> float:
        return self.seconds * self.num_gpus / 3600

    @property
    def words(self) -> str:
        gpus = f", {self.gpu_hours:.2g} GPU hours" if self.num_gpus else ""
        return f"about {wording.duration(self.seconds)}{gpus}, {self.memory / 1e9:.2g} GB of memory"


def costs(records: list[StepRecord], *, base_model: str, loads: Mapping[str, Load]) -> dict[str, Cost]:
    """Returns the cost of each step that worked in a run of this base model, by the newest record of each.

    Args:
        records: in the order in which the steps started.
        loads: what each training will read now; one that is not listed is assumed to read as much as before.
    """
    runs = {one.run_id for one in records if _is_same(one.measured.get("source"), base_model)}
    newest = {one.step: one for one in records if one.run_id in runs and one.status == "succeeded"}
    known = {step: _cost(record, loads.get(step)) for step, record in newest.items()}
    return {step: cost for step, cost in known.items() if cost is not None}


def sentence(expected: Mapping[str, Cost]) -> str:
    """Says what these steps cost together, and which runs the figures come from."""
    total = Cost(sum(cost.seconds for cost in expected.values()), 0, 0, "")
    hours = sum(cost.gpu_hours for cost in expected.values())
    gpus = f" and {hours:.2g} GPU hours" if hours else ""
    runs = ", ".join(dict.fromkeys(cost.run_id for cost in expected.values()))
    return f"about {wording.duration(total.seconds)}{gpus} of work, based on {runs}"


def _cost(record: StepRecord, load: Load | None) -> Cost | None:
    """Returns the cost of a step; None for a training resumed from a checkpoint: its record covers only a part."""
    seconds = record.seconds
    num_before = record.measured.get("samples_processed")
    if record.progress and record.progress.resumed_at:
        return None
    if load and num_before:
        seconds = record.work_seconds / num_before * load.num_rows * load.epochs + (seconds - record.work_seconds)
    return Cost(seconds, record.peak_memory, record.num_gpus, record.run_id)


def _is_same(source: str | None, base_model: str) -> bool:
    """Tells whether a run fetched this base model; which commit of the Hub's does not matter here."""
    if not source:
        return False
    if "hub" in (kinds := {storage.kind(source), storage.kind(base_model)}):
        return kinds == {"hub"} and storage.hub_id(source)[0] == storage.hub_id(base_model)[0]
    return source == base_model
