"""The bundled suites of general skills: short prompts, each with a verifier that says whether an answer is right.

name -> rows of `rows/<name>.jsonl`, which `python -m validators.skills.generators` writes
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Message = dict[str, str]
FOLDER = Path(__file__).parent / "rows"

# Tokens that an answer may have: enough for the reference, and a prose answer shows within them whether it is right.
MAX_NEW_TOKENS = {
    "arithmetic": 16,
    "reading": 20,
    "knowledge": 12,
    "choice": 8,
    "memory": 20,
    "instructions": 32,
    "json_form": 40,
    "tool_calls": 40,
    "refusal": 20,
    "helpfulness": 20,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One prompt, how its answer is verified, and an answer of our own that is right."""

    id: str
    prompt: list[Message]
    verifier: str  # a name in `validators.skills.verifiers.VERIFIERS`
    arguments: dict[str, Any]  # of the verifier
    reference: str
    chance: float  # probability that a guess is right


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """The rows of one skill that a model is asked."""

    name: str
    rows: list[Row]
    max_new_tokens: int

    @property
    def chance(self) -> float:
        """Share of right answers that guessing reaches."""
        return sum(row.chance for row in self.rows) / len(self.rows)


def load(name: str, num_rows: int) -> Suite:
    """The first rows of a suite: its file alternates between the kinds of rows, so a few show them all."""
    return Suite(name=name, rows=list(_read(name)[:num_rows]), max_new_tokens=MAX_NEW_TOKENS[name])


def num_rows(name: str) -> int:
    """How many rows a suite has in all."""
    return len(_read(name))


@cache
def _read(name: str) -> tuple[Row, ...]:
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Row(**json.loads(line)) for line in lines)
