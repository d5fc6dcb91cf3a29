"""Asks a model the rows of suites and verifies its answers.

model, tokenizer, suites -> by suite the answers in the order of the rows, each with its fault where it is wrong
"""

from collections.abc import Callable
from typing import Any

from validators.answers import JudgedAnswer
from validators.inference import Answer
from validators.skills.suites import Suite
from validators.skills.verifiers import verify

WRONG = "is wrong"

Generate = Callable[..., list[Answer]]  # `validators.inference.generate`, or another engine's


def ask(
    model: Any, tokenizer: Any, suites: list[Suite], *, generate: Generate, declines_with: str | None = None
) -> dict[str, list[JudgedAnswer]]:
    """Greedy answers by suite. Suites with the same limit of tokens share their batches."""
    answered: dict[str, Answer] = {}
    for limit in sorted({suite.max_new_tokens for suite in suites}, reverse=True):
        rows = [row for suite in suites if suite.max_new_tokens == limit for row in suite.rows]
        prompts = [row.prompt for row in rows]
        answers = generate(model, tokenizer, prompts, max_new_tokens=limit)
        answered |= {row.id: answer for row, answer in zip(rows, answers, strict=True)}
    return {
        suite.name: [
            JudgedAnswer(
                row.prompt, answered[row.id],
                None if verify(row, answered[row.id].text, declines_with=declines_with) else WRONG,
            )
            for row in suite.rows
        ]
        for suite in suites
    }  # fmt: skip
