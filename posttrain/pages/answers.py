"""answers.jsonl: the prompts that a gate asked, and each model's answer to them, for people and for later pages.

rows of a gate -> one JSON object a line, in the order in which they were asked; the file -> the rows again

    {"source": "held-out prompt", "prompt": [messages, the system turn too], "references": [texts or JSON values],
     "base": ANSWER or null, "before": ANSWER or null, "model": ANSWER or null}

    ANSWER = {"text": str, "stopped": bool, "score": 0 to 1 or null, "fault": str or null}

`model` is the one that the gate judges, `before` the one that its training started from (null where that is the base).
`score` compares with the references, null where nothing does; `fault` says what is wrong with the form, or what is
harmful. Skill prompts are listed only where the base answers correctly and the model does not. Texts are as the model
wrote them: hostile, to be escaped wherever they are shown.
"""

import json
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from posttrain.pages import differences

ANSWERS = "answers.jsonl"
RIGHT = 0.5  # a score from which an answer counts as right
Source = Literal["held-out prompt", "red-team prompt", "skill prompt"]


class ModelAnswer(BaseModel):
    """One model's answer."""

    model_config = ConfigDict(frozen=True)

    text: str
    stopped: bool  # by itself
    score: float | None = None
    fault: str | None = None

    @property
    def is_wrong(self) -> bool:
        return self.fault is not None or (self.score is not None and self.score < RIGHT)

    @property
    def mark(self) -> str:
        """The answer's fault, else right, wrong or not judged."""
        if self.fault is not None:
            return self.fault
        return "not judged" if self.score is None else "right" if self.score >= RIGHT else "wrong"


class AnsweredPrompt(BaseModel):
    """A prompt, what counts as right, and what the models answered."""

    model_config = ConfigDict(frozen=True)

    source: Source
    prompt: list[dict[str, Any]]
    references: list[Any] = []
    base: ModelAnswer | None = None
    before: ModelAnswer | None = None
    model: ModelAnswer | None = None

    @property
    def is_wrong(self) -> bool:
        """Whether the judged model's answer is."""
        return self.model is None or self.model.is_wrong


def to_jsonl(rows: Iterable[AnsweredPrompt]) -> str:
    return "".join(f"{row.model_dump_json()}\n" for row in rows)


def read(text: str | bytes) -> list[AnsweredPrompt]:
    """The rows of a file's content.

    Raises:
        ValueError: a line is not such a row.
    """
    content = text.encode() if isinstance(text, str) else text
    # Not splitlines(): of a text it also splits at a U+2028 inside a string.
    return [AnsweredPrompt.model_validate_json(line) for line in content.split(b"\n") if line.strip()]


def worst_first(rows: Iterable[AnsweredPrompt]) -> list[AnsweredPrompt]:
    """Sorts faults first, then wrong answers by score (those that another model had right leading), then the rest."""

    def rank(row: AnsweredPrompt) -> tuple:
        lost = [one.score for one in (row.before, row.base) if one and one.score is not None]
        score = row.model.score if row.model and row.model.score is not None else 1.0
        return (not row.is_wrong, row.model is None or row.model.fault is None, score, -max(lost, default=0.0))

    return sorted(rows, key=rank)


def columns_of(rows: Iterable[AnsweredPrompt], titles: dict[str, str]) -> dict[str, str]:
    """The titles of those models that answered any of these prompts."""
    rows = list(rows)
    return {name: title for name, title in titles.items() if any(getattr(row, name) for row in rows)}


def reference_text(reference: Any) -> str:
    """The text of a reference, which may be any JSON value."""
    return reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False)


def tone(answer: ModelAnswer) -> str:
    """CSS class of a model's answer."""
    return "bad" if answer.is_wrong else "good" if answer.mark == "right" else "none"


def marked(answer: ModelAnswer, row: AnsweredPrompt) -> list[differences.Piece]:
    """The answer in pieces, those marked that differ from the nearest reference; a right answer has no marks."""
    if not answer.is_wrong:
        return [(answer.text, False)]
    return differences.pieces(answer.text, [reference_text(reference) for reference in row.references])
