"""The verdict of a gate: checks, each with what was measured, its limit and the remedy, bound to what was judged.

The builders (`below`, `at_most`, ...) fail closed: a number that is missing, NaN or infinite never passes. How a gate
measures and judges stands in `validators`; here is only the type, which publishing, reports and the record share.
"""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

Status = Literal["passed", "failed"]
Interval = tuple[float, float]  # 95 %, low and high


class Check(BaseModel):
    """One thing that was measured against one limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    status: Status
    value: float | None = None  # None: there was no finite number
    limit: float | None = None
    relation: Literal["<", "<=", ">", ">=", ""] = ""  # of value to limit, for a check to pass
    interval: Interval | None = None
    detail: str = ""
    remedy: str = ""

    @property
    def sentence(self) -> str:
        """`held-out loss: 2.41, not < 2 (detail). Remedy`: one line for logs and terminals."""
        number = "" if self.limit is None else f": {_number(self.value)} {self.relation} {_number(self.limit)}"
        if self.limit is not None and self.status != "passed":
            number = f": {_number(self.value)}, not {self.relation} {_number(self.limit)}"
        detail = f" ({self.detail})" if self.detail else ""
        remedy = f". {self.remedy}" if self.remedy and self.status != "passed" else ""
        return f"{self.name}{number}{detail}{remedy}"


class Verdict(BaseModel):
    """What a gate found. An empty list of checks is an error, not a pass."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    gate: str  # step name
    subject: dict[str, str]  # what was judged: input name -> SHA-256
    checks: tuple[Check, ...] = Field(min_length=1)
    numbers: dict[str, float] = {}  # measured beside the checks

    @computed_field
    @property
    def passed(self) -> bool:
        return all(check.status == "passed" for check in self.checks)

    @property
    def failed_checks(self) -> list[Check]:
        return [check for check in self.checks if check.status != "passed"]

    @classmethod
    def read(cls, text: str | bytes) -> "Verdict":
        """A verdict from its JSON. Its `passed` is derived again: what the text claims does not count."""
        return _Stored.model_validate_json(text).verdict()


class _Stored(Verdict):
    """A verdict as written, which holds the derived `passed` too."""

    model_config = ConfigDict(extra="ignore")

    def verdict(self) -> Verdict:
        return Verdict(gate=self.gate, subject=self.subject, checks=self.checks, numbers=self.numbers)


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


def holds(name: str, condition: bool, *, detail: str = "", remedy: str = "") -> Check:
    """Passes if the condition is True itself; anything else, a number or None included, fails."""
    return Check(name=name, status="passed" if condition is True else "failed", detail=detail, remedy=remedy)


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
) -> Check:
    measured = value is not None and math.isfinite(value)
    if not measured:
        detail = "; ".join(filter(None, [f"measured {value}", detail]))
    holds_ = (
        measured
        and {
            "<": value < limit,
            "<=": value <= limit,
            ">": value > limit,
            ">=": value >= limit,
        }[relation]
    )
    return Check(
        name=name,
        status="passed" if holds_ else "failed",
        value=float(value) if measured else None,
        limit=float(limit),
        relation=relation,
        interval=interval,
        detail=detail,
        remedy=remedy,
    )


def _number(value: float | None) -> str:
    return "no number" if value is None else f"{value:.4g}"
