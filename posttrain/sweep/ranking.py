"""Candidates side by side: trials of a sweep or whole runs, each with its settings, gate metrics, cost and end.

candidates, an objective -> the same in order, the best first; who cannot be told from the best is marked
"""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict

from posttrain.verdict import Interval, Verdict

QUALIFIED = "qualified"
NOT_PROMOTED = "not promoted"  # of halving: it was well, and others were better


class Measure(BaseModel):
    """A number that a gate has measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    interval: Interval | None = None


class Cost(BaseModel):
    """What was spent; what was taken over from earlier runs costs nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    peak_memory: int = 0  # bytes, of the largest single process

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            seconds=self.seconds + other.seconds,
            cpu_seconds=self.cpu_seconds + other.cpu_seconds,
            gpu_seconds=self.gpu_seconds + other.gpu_seconds,
            peak_memory=max(self.peak_memory, other.peak_memory),
        )

    @property
    def compute_seconds(self) -> float:
        """Those of the GPUs where there are some, else those of the CPU."""
        return self.gpu_seconds or self.cpu_seconds


class Candidate(BaseModel):
    """A trial or a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    run_id: str  # under which its steps are recorded
    settings: dict[str, Any]  # `sft.learning_rate` -> value
    status: str  # qualified, or what became of it
    reason: str = ""  # why it does not qualify
    measures: dict[str, Measure] = {}  # `check_sft.held_out_loss` -> what was measured
    cost: Cost = Cost()
    objective: str | None = None  # the measure by which it is compared
    rung: int = 0  # of successive halving, the last that it has reached

    @property
    def qualifies(self) -> bool:
        return self.status == QUALIFIED

    @property
    def measure(self) -> Measure | None:
        """What it came to in the objective."""
        return self.measures.get(self.objective or "")

    @property
    def value(self) -> float | None:
        return self.measure.value if self.measure else None


class Ranked(BaseModel):
    """A candidate in its place."""

    candidate: Candidate
    place: int | None  # from 1; None for one that does not qualify
    is_level: bool = False  # with the best: their intervals overlap


def ranked(candidates: Iterable[Candidate], sign: int) -> list[Ranked]:
    """The best first, ties by cost; then those that were not promoted, then those that do not qualify.

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
    """Whether the intervals of two measures have a number in common; without intervals, whether they are equal."""
    if one is None or other is None:
        return False
    (low, high), (other_low, other_high) = (m.interval or (m.value, m.value) for m in (one, other))
    return low <= other_high and other_low <= high


def measures_of(verdict: Verdict) -> dict[str, Measure]:
    """The numbers of a verdict: those of its checks, with their intervals, and those that it shows beside them."""
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
