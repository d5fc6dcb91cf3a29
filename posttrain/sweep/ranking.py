"""Ranks candidates: trials of a sweep or whole runs, each with its settings, gate metrics, cost and status.

candidates, an objective -> candidates in order, the best first; those that are tied with the best are marked
"""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict

from posttrain.verdict import Interval, Verdict

QUALIFIED = "qualified"
GATE_FAILED = "gate failed"
NOT_PROMOTED = "not promoted"  # in halving: it qualified, but others were better


class Measure(BaseModel):
    """A number that a gate has measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    interval: Interval | None = None


class Cost(BaseModel):
    """The cost of a candidate; reused results of earlier runs cost nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    peak_memory: int = 0  # bytes, in the largest process

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            seconds=self.seconds + other.seconds,
            cpu_seconds=self.cpu_seconds + other.cpu_seconds,
            gpu_seconds=self.gpu_seconds + other.gpu_seconds,
            peak_memory=max(self.peak_memory, other.peak_memory),
        )

    @property
    def compute_seconds(self) -> float:
        """GPU-seconds, or CPU-seconds if there was no GPU."""
        return self.gpu_seconds or self.cpu_seconds


class Candidate(BaseModel):
    """A trial or a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    run_id: str  # its steps are recorded under this id
    settings: dict[str, Any]  # `sft.learning_rate` -> value
    status: str  # qualified, or why not
    reason: str = ""  # why it does not qualify
    measures: dict[str, Measure] = {}  # `check_sft.held_out_loss` -> what was measured
    cost: Cost = Cost()
    objective: str | None = None  # name of the measure by which it is compared
    rung: int = 0  # last rung of successive halving that it reached

    @property
    def qualifies(self) -> bool:
        return self.status == QUALIFIED

    @property
    def measure(self) -> Measure | None:
        """Its measure of the objective."""
        return self.measures.get(self.objective or "")

    @property
    def value(self) -> float | None:
        return self.measure.value if self.measure else None


class Ranked(BaseModel):
    """A candidate and its place."""

    candidate: Candidate
    place: int | None  # from 1; None for one that does not qualify
    is_level: bool = False  # tied with the best: their intervals overlap


def ranked(candidates: Iterable[Candidate], sign: int) -> list[Ranked]:
    """Returns the best first, ties by cost; then those that were not promoted, then those that do not qualify.

    Args:
        sign: 1 if a small objective is good, -1 if a large one is.
    """
    ordered = sorted(candidates, key=lambda candidate: _key(candidate, sign))
    best = next((candidate for candidate in ordered if candidate.qualifies), None)
    rows = []
    for candidate in ordered:
        place = len(rows) + 1 if candidate.qualifies else None
        is_level = candidate is not best and candidate.qualifies and overlap(candidate.measure, best.measure)
        rows.append(Ranked(candidate=candidate, place=place, is_level=is_level))
    return rows


def overlap(one: Measure | None, other: Measure | None) -> bool:
    """Tells whether two intervals overlap; measures without an interval must be equal."""
    if one is None or other is None:
        return False
    (low, high), (other_low, other_high) = (m.interval or (m.value, m.value) for m in (one, other))
    return low <= other_high and other_low <= high


def measures_of(verdict: Verdict) -> dict[str, Measure]:
    """Returns the numbers of a verdict: those of its checks, with intervals, and its other numbers."""
    numbers = {name: Measure(value=value) for name, value in verdict.numbers.items()}
    checked = {
        check.name: Measure(value=check.value, interval=check.interval)
        for check in verdict.checks
        if check.value is not None
    }
    return {f"{verdict.gate}.{name}": measure for name, measure in (numbers | checked).items()}


def _key(candidate: Candidate, sign: int) -> tuple:
    group = {QUALIFIED: 0, NOT_PROMOTED: 1}.get(candidate.status, 2)
    value = float("inf") if candidate.value is None else sign * candidate.value
    return group, -candidate.rung, value, candidate.cost.compute_seconds, candidate.name
