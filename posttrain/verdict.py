"""The verdict of a gate: checks, each with its measured value, limit and remedy, bound to what was judged.

The builders (`below`, `at_most`, ...) fail closed: a number that is missing, NaN or infinite never passes, and neither
does one whose interval crosses the limit. `validators` measures and judges; this module has only the type, which
publishing, reports and the run record share.
"""

import math
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

Status = Literal["passed", "failed", "undecided", "timed out", "not run"]
Outcome = Literal["passed", "failed", "undecided"]
Interval = tuple[float, float]  # low and high, at the confidence of the verdict
SCHEMA_VERSION = 1  # of verdict.json; raised when a reader of the old form would misread the new one
COUNTS = re.compile(r"(\d+) of (\d+)(?:; |$)")  # how the detail of a share begins
MORE_ROWS = "raise data.eval_fraction, or add rows"  # how a gate gets more held-out rows


class Check(BaseModel):
    """One thing that was measured against one limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    status: Status
    value: float | None = None  # None: no finite number
    limit: float | None = None
    relation: Literal["<", "<=", ">", ">=", ""] = ""  # between value and limit, if the check is to pass
    interval: Interval | None = None
    more_rows: int | None = None  # undecided: about this many more rows would decide, if the value stays
    detail: str = ""
    remedy: str = ""

    @model_validator(mode="after")
    def _what_passed_keeps_its_limit(self):
        """Refuses a check that claims to have passed while its value or a part of its interval breaks the limit."""
        numbers = (self.value, *(self.interval or ()))
        if (self.limit is None) != (self.relation == ""):
            raise ValueError(f"{self.name}: limit {self.limit}, relation {self.relation!r}: give both or neither")
        if self.status == "passed" and self.limit is not None and not all(self._keeps(number) for number in numbers):
            raise ValueError(f"{self.name}: {numbers} is not {self.relation} {self.limit}, so it has not passed")
        return self

    def _keeps(self, number: float | None) -> bool:
        return number is not None and _holds(number, self.limit, self.relation)

    @property
    def sentence(self) -> str:
        """One line for logs and terminals: `held-out loss: 2.41, not < 2 (detail). Remedy`."""
        if self.status == "undecided" and self.interval:
            return self._undecided_sentence
        number = ""
        if self.limit is not None:
            broken = "" if self._keeps(self.value) else ", not"
            number = f": {_number(self.value)}{broken} {self.relation} {_number(self.limit)}"
        detail = f" ({self.detail})" if self.detail else ""
        remedy = f". {self.remedy}" if self.remedy and self.status != "passed" else ""
        return f"{self.name}{number}{detail}{remedy}"

    @property
    def _undecided_sentence(self) -> str:
        """`rate: 24 of 24 (100 %), limit >= 90 %: the interval 86.2-100 % crosses the limit. Remedy`."""
        counts = COUNTS.match(self.detail)
        shown = _percent if counts else _number
        value, limit, low, high = (shown(number) for number in (self.value, self.limit, *self.interval))
        unit, detail = (" %", self.detail[counts.end() :]) if counts else ("", self.detail)
        measured = f"{counts[1]} of {counts[2]} ({value} %)" if counts else value
        detail = f" ({detail})" if detail else ""
        interval = f"the interval {low} to {high}{unit} crosses the limit{detail}"
        return f"{self.name}: {measured}, limit {self.relation} {limit}{unit}: {interval}. {self.remedy}"


class Verdict(BaseModel):
    """The judgement of a gate. An empty list of checks is an error, not a pass."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = SCHEMA_VERSION
    gate: str  # step name
    subject: dict[str, str]  # what was judged: input name -> SHA-256
    checks: tuple[Check, ...] = Field(min_length=1)
    numbers: dict[str, float] = {}  # measured beside the checks
    confidence: float = Field(0.95, gt=0, lt=1)  # of the intervals
    answer_match: str | None = None  # what compared answers with references; none: nobody; null: no answers judged
    seconds: dict[str, float] = {}  # measurement -> how long it took

    @computed_field
    @property
    def passed(self) -> bool:
        return all(check.status == "passed" for check in self.checks)

    @computed_field
    @property
    def outcome(self) -> Outcome:
        """`undecided` if no check failed, but some had too few rows to decide."""
        statuses = {check.status for check in self.checks}
        if statuses == {"passed"}:
            return "passed"
        return "undecided" if statuses <= {"passed", "undecided"} else "failed"

    @property
    def content_is_unjudged(self) -> bool:
        """Whether models answered and nobody judged what they said."""
        return self.answer_match == "none"

    @property
    def failed_checks(self) -> list[Check]:
        """The checks that did not pass, the most telling ones first."""
        order = {"failed": 0, "timed out": 0, "undecided": 1, "not run": 2}
        return sorted((check for check in self.checks if check.status != "passed"), key=lambda c: order[c.status])

    @classmethod
    def read(cls, text: str | bytes) -> "Verdict":
        """Reads a verdict from its JSON. Its `passed` is derived again: what the text claims does not count."""
        return _Stored.model_validate_json(text).verdict()

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Verdict":
        """Reads a verdict from its JSON as Python values, as `read` does."""
        return _Stored.model_validate(values).verdict()


class _Stored(Verdict):
    """A verdict as written, with the derived values."""

    model_config = ConfigDict(extra="ignore")

    def verdict(self) -> Verdict:
        return Verdict.model_validate({name: getattr(self, name) for name in Verdict.model_fields})


def below(name: str, value: float | None, limit: float, **words) -> Check:
    """Passes if value < limit."""
    return _compare(name, value, limit, "<", **words)


def at_most(name: str, value: float | None, limit: float, **words) -> Check:
    """Passes if value <= limit."""
    return _compare(name, value, limit, "<=", **words)


def above(name: str, value: float | None, limit: float, **words) -> Check:
    """Passes if value > limit."""
    return _compare(name, value, limit, ">", **words)


def at_least(name: str, value: float | None, limit: float, **words) -> Check:
    """Passes if value >= limit."""
    return _compare(name, value, limit, ">=", **words)


def holds(name: str, condition: bool | None, *, detail: str = "", remedy: str = "") -> Check:
    """Passes if the condition is True itself; None was not looked at; anything else, a number included, fails."""
    status = "passed" if condition is True else "not run" if condition is None else "failed"
    return Check(name=name, status=status, detail=detail, remedy=remedy)


def none_wrong(name: str, wrong: list[str] | None, remedy: str) -> Check:
    """Passes if the list of what is wrong was made and is empty; its detail names the first three."""
    detail = f"{len(wrong)}: {', '.join(wrong[:3])}" if wrong else ""
    return holds(name, None if wrong is None else not wrong, detail=detail, remedy=remedy)


def rows_more(number: int) -> str:
    """Formats a number of missing rows: `1 more row`, `1,200 more rows`."""
    return f"{number:,} more row{'s' if number > 1 else ''}"


def finite(numbers: dict[str, float | None]) -> dict[str, float]:
    """Keeps the finite numbers: neither JSON nor the backend's metadata can hold the others."""
    return {name: float(value) for name, value in numbers.items() if value is not None and math.isfinite(value)}


def _compare(
    name: str,
    value: float | None,
    limit: float,
    relation: str,
    *,
    detail: str = "",
    remedy: str = "",
    interval: Interval | None = None,
    more_rows: int | None = None,
    num_rows: int | None = None,
    more_rows_by: str = MORE_ROWS,
) -> Check:
    """Builds a check. With an interval, it passes or fails only if the whole interval does, else it is undecided.

    Args:
        more_rows: how many more rows would decide; without an interval, how many are missing for one.
        num_rows: rows that were measured, for the remedy.
        more_rows_by: how the user gets more of them.
    """
    measured = value is not None and math.isfinite(value)
    if not measured:
        detail = "; ".join(filter(None, ["not measured" if value is None else f"measured {value}", detail]))
    status = "not run" if value is None else "failed"
    if measured:
        unsure = more_rows and interval is None
        status = "undecided" if unsure else _status(value, limit, relation, interval)
    if status == "undecided":
        advice = "" if _holds(value, limit, relation) else remedy  # a value that keeps its limit needs rows alone
        remedy = f"{_what_would_decide(more_rows, num_rows, more_rows_by)} {advice}".strip()
    return Check(
        name=name,
        status=status,
        value=float(value) if measured else None,
        limit=float(limit),
        relation=relation,
        interval=interval if measured else None,
        more_rows=more_rows if status == "undecided" else None,
        detail=detail,
        remedy=remedy,
    )


def _status(value: float, limit: float, relation: str, interval: Interval | None) -> Status:
    outcomes = {_holds(number, limit, relation) for number in (value, *(interval or ()))}
    return "undecided" if len(outcomes) > 1 else "passed" if outcomes.pop() else "failed"


def _holds(value: float, limit: float, relation: str) -> bool:
    return {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit}[relation]


def _what_would_decide(more_rows: int | None, num_rows: int | None, more_rows_by: str) -> str:
    if not more_rows:
        return "The value is so close to the limit that no number of rows would decide."
    if not num_rows:
        return f"About {rows_more(more_rows)} would decide, if the value stays: {more_rows_by}."
    rows, total = f"{num_rows:,} row{'s' if num_rows > 1 else ''}", num_rows + more_rows
    return f"{rows} cannot decide; about {total:,} would, if the value stays: {more_rows_by}."


def _number(value: float | None) -> str:
    return "no number" if value is None else f"{value:.4g}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}"
