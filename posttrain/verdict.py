"""The verdict of a gate: checks, each with what was measured, its limit and the remedy, bound to what was judged.

The builders (`below`, `at_most`, ...) fail closed: a number that is missing, NaN or infinite never passes, and neither
does one whose interval reaches over the limit. How a gate measures and judges stands in `validators`; here is only the
type, which publishing, reports and the record share.
"""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

Status = Literal["passed", "failed", "undecided", "timed out", "not run"]
Outcome = Literal["passed", "failed", "undecided"]
Interval = tuple[float, float]  # low and high, at the confidence that the gate was given
SCHEMA_VERSION = 1  # of verdict.json; raised when a reader of the old form would misread the new one


class Check(BaseModel):
    """One thing that was measured against one limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    status: Status
    value: float | None = None  # None: there was no finite number
    limit: float | None = None
    relation: Literal["<", "<=", ">", ">=", ""] = ""  # of value to limit, for a check to pass
    interval: Interval | None = None
    more_rows: int | None = None  # undecided: about so many more held-out rows would decide, if the value stays
    detail: str = ""
    remedy: str = ""

    @model_validator(mode="after")
    def _what_passed_keeps_its_limit(self):
        """Whoever wrote it, a check that says so passed only if its value and its whole interval do."""
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
        """`held-out loss: 2.41, not < 2 (detail). Remedy`: one line for logs and terminals."""
        number = ""
        if self.limit is not None:
            held = "" if self._keeps(self.value) else ", not"
            number = f": {_number(self.value)}{held} {self.relation} {_number(self.limit)}"
        if self.status == "undecided" and self.interval:
            number += f" but from {_number(self.interval[0])} to {_number(self.interval[1])}"
        detail = f" ({self.detail})" if self.detail else ""
        remedy = f". {self.remedy}" if self.remedy and self.status != "passed" else ""
        return f"{self.name}{number}{detail}{remedy}"


class Verdict(BaseModel):
    """What a gate found. An empty list of checks is an error, not a pass."""

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
        """Undecided if nothing is wrong and too few rows were held out to say that all is well."""
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
        """All that did not pass; those that say most about why come first."""
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
    """A verdict as written, which holds what is derived too."""

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
    """`1 more held-out row`, `1,200 more held-out rows`."""
    return f"{number:,} more held-out row{'s' if number > 1 else ''}"


def finite(numbers: dict[str, float | None]) -> dict[str, float]:
    """The finite ones of measured numbers: neither JSON nor the backend's metadata can hold the others."""
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
) -> Check:
    """`interval` decides where there is one: the check passes or fails only as a whole interval.

    `more_rows` without an interval: so many are missing to tell one, and nothing is decided.
    """
    measured = value is not None and math.isfinite(value)
    if not measured:
        detail = "; ".join(filter(None, ["not measured" if value is None else f"measured {value}", detail]))
    status = "not run" if value is None else "failed"
    if measured:
        unsure = more_rows and interval is None
        status = "undecided" if unsure else _status(value, limit, relation, interval)
    if status == "undecided":
        rows = f"about {rows_more(more_rows)}" if more_rows else "no number of held-out rows"
        advice = "" if _holds(value, limit, relation) else remedy  # what keeps its limit needs rows, not mending
        remedy = f"{rows[0].upper()}{rows[1:]} would decide, if the value stays. {advice}".strip()
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
    held = {_holds(number, limit, relation) for number in (value, *(interval or ()))}
    return "undecided" if len(held) > 1 else "passed" if held.pop() else "failed"


def _holds(value: float, limit: float, relation: str) -> bool:
    return {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit}[relation]


def _number(value: float | None) -> str:
    return "no number" if value is None else f"{value:.4g}"
