"""Prompt-only files that gates ask a model with: red-team, off-topic and benign prompts.

path, gs:// or s3:// -> prompts, each a list of messages; a plain text becomes a user turn
"""

from typing import Any

from posttrain import storage
from posttrain.config import AlignmentLimits
from posttrain.rows import ROLES
from posttrain.sources import read_rows

Message = dict[str, str]
KEYS = ("red_team_prompts", "off_topic_prompts", "benign_prompts")  # of the configuration's validation


def given(limits: AlignmentLimits) -> dict[str, str]:
    """The addresses that are set, by their keys."""
    return {key: getattr(limits, key) for key in KEYS if getattr(limits, key)}


def read_prompts(uri: str, allowed_prefixes: list[str], *, key: str) -> list[list[Message]]:
    """The prompts of a file.

    Raises:
        ValueError: naming file, row, value and remedy; or the file, the value of validation's `key`, lies outside the
            allowed prefixes.
    """
    storage.check_allowed(uri, allowed_prefixes, name=f"validation.{key}")
    rows = enumerate(read_rows(uri), start=1)
    return [_prompt(row.get("prompt"), place=f"{uri}: row {number}") for number, row in rows]


def _prompt(value: Any, *, place: str) -> list[Message]:
    if isinstance(value, str) and value.strip():
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value or not all(map(_is_message, value)):
        shown = repr(value)[:80]
        raise ValueError(f"{place}: 'prompt' is {shown}: give a text or a list of messages with role and content")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.get("role") in ROLES and isinstance(value.get("content"), str)
