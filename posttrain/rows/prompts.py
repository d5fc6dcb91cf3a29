"""Reads prompt-only files for the safety checks: red-team, off-topic and benign prompts.

path, gs:// or s3:// -> prompts, each a list of messages; plain text becomes a user turn; a row may offer `tools`
"""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from posttrain import storage
from posttrain.config import PromptFiles
from posttrain.rows import keys, tools
from posttrain.rows.formats import ROLES, is_blank, normalise, shown, write_jsonl
from posttrain.rows.sources import read_rows

logger = logging.getLogger(__name__)

Message = dict[str, Any]
KEYS = ("red_team_prompts", "off_topic_prompts", "benign_prompts")  # of the configuration's validation


def given(limits: PromptFiles) -> dict[str, str]:
    """Returns the addresses that are set, by their keys."""
    return {key: getattr(limits, key) for key in KEYS if getattr(limits, key)}


def bring(
    limits: PromptFiles, folder: Path, allowed_prefixes: list[str], *, keys: Iterable[str] = KEYS
) -> dict[str, str]:
    """Makes local copies, by their keys, so that a gate's verdict is bound to their content and not to an address."""
    paths = {}
    for key, uri in given(limits).items():
        if key in keys:
            prompts = enumerate(read_prompts(uri, allowed_prefixes, key=key), start=1)
            paths[key] = str(folder / f"{key}.jsonl")
            write_jsonl(paths[key], [{"id": f"prompt {number}", "prompt": prompt} for number, prompt in prompts])
    return paths


def read_prompts(uri: str, allowed_prefixes: list[str], *, key: str) -> list[list[Message]]:
    """Reads the distinct prompts of a file: one that is asked twice would count twice in every interval.

    Raises:
        ValueError: a row has no prompt, or the file, the value of validation's `key`, is outside the allowed prefixes.
    """
    storage.check_allowed(uri, allowed_prefixes, name=f"validation.{key}")
    prompts, left_out = [], Counter()
    for number, row in enumerate(read_rows(uri), start=1):
        prompt, keys_left_out = _prompt(row, place=f"{uri}: row {number}")
        prompts.append(prompt)
        left_out.update(keys_left_out)
    if left_out:
        logger.info("%s: left out %s", uri, ", ".join(f"{name} ({count} rows)" for name, count in left_out.items()))
    distinct = list({_key(prompt): prompt for prompt in prompts}.values())
    if len(distinct) < len(prompts):
        num_repeated = len(prompts) - len(distinct)
        logger.warning("%s: %d of %d prompts repeat others: each is asked once", uri, num_repeated, len(prompts))
    return distinct


def _key(prompt: list[Message]) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], normalise(message["content"])) for message in prompt)


def _prompt(row: dict[str, Any], *, place: str) -> tuple[list[Message], tuple[str, ...]]:
    """Returns the prompt of a row, and the names of the keys that are left out."""
    try:
        read = keys.read_asked(row)
        messages = keys.with_system(_messages(read.row["prompt"]), read.system)
        offered = tools.read_tools(read.row["tools"])
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return ([messages[0] | {"tools": offered}, *messages[1:]] if offered else messages), read.left_out


def _messages(value: Any) -> list[Message]:
    if isinstance(value, str) and not is_blank(value):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not all(map(_is_message, value)) or not any(map(_asks, value)):
        remedy = "give text, or messages with role and content and a user turn"
        raise ValueError(f"'prompt' is {shown(value)}: {remedy}")
    kept = ("role", "content", *keys.FOR_TEMPLATE)
    return [{name: message[name] for name in kept if name in message} for message in value]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.get("role") in ROLES and isinstance(value.get("content"), str)


def _asks(message: Message) -> bool:
    return message["role"] == "user" and not is_blank(message["content"])
