"""Recognises conversations that a table or a script has turned into text, and answers that repeat their prompt.

text of a cell -> the messages that it holds, the text itself, or an error: such a text is never trained on as it is

    JSON, also encoded twice     [{"role": "user", "content": "..."}]
    `str` of a Python list       [{'role': 'user', 'content': "it's"}]
    numpy's and pandas' form     array([{'role': 'user'} {'role': 'assistant'}], dtype=object)
    HH-RLHF                      \\n\\nHuman: ...\\n\\nAssistant: ...

JSON text that is no conversation is an answer like any other. A list of tool calls, which is what a CSV cell with one
is read as, is the message that makes these calls.
"""

import ast
import re
import warnings
from typing import Any

from posttrain.config.documents import Refused, parse_json

MAX_ENCODINGS = 4  # JSON text of JSON text of ...
SPEAKERS = {"system", "user", "human", "assistant", "gpt", "chatgpt", "tool", "observation", "function_call"}
OPENED = re.compile(r"[\s\ufeff\"']*(?:array\(|[\[{(])")
KEY = re.compile(r"\\*[\"'](?:role|from|type)\\*[\"']\s*:")
# At the beginning of a text: brackets, and a message's key or another one before it.
BROKEN = re.compile(
    r"[\s\ufeff\"'\\\[(]*(?:array\([\s\[(]*)*\{\s*(?:\\*[\"']\w+\\*[\"']\s*:[^{}\[\]]{0,200})?"
    r"\\*[\"'](?:role|from)\\*[\"']\s*:\s*\\*[\"']\w+"
)
OBJECTS = re.compile(
    r"\s*(?:\[object Object\]|\[?\s*\w*Message\w*\([^)]{0,200}?\b(?:role|content)=)"
)  # of other languages and SDKs
# numpy prints no comma between objects. Quoted strings come first, so that nothing inside them is changed.
NUMPY = re.compile(
    r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(\}\s+(?=\{))|array(?=\()|,\s*dtype=\w+(?=\))""", re.DOTALL
)
HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}
HH_TEXT = re.compile(r"\ufeff?(?:\n\n(?:Human|Assistant):|\s*Human:(?=.*\n\nAssistant:))", re.DOTALL)
ASKS = r"(?:#+ *)?(?:human|user)\s*:"
ANSWERS = r"\n\s*(?:#+ *)?(?:assistant|ai|bot|gpt)\s*:"
PARTS = {"text", "input_text", "output_text", "image", "image_url", "input_image", "video", "audio", "input_audio"}
TRANSCRIPT = re.compile(
    rf"\s*(?:{ASKS}.*{ANSWERS}|.*### (?:instruction|human):.*### (?:response|assistant):)", re.I | re.S
)
RENDERED = re.compile(
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>|<｜begin▁of▁sentence｜>)?\s*"
    r"(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|turn>|\[INST\]|\[SYSTEM_PROMPT\]|<\|start\|>|<｜User｜>|"
    r"<\|(?:user|system|assistant)\|>|<\|(?:START_OF_TURN)_TOKEN\|>)"
)
MIN_ECHO_WORDS = 5  # an answer may begin with a shorter prompt by itself: "Good morning" -> "Good morning! How ..."


def unpacked(text: str, key: str, *, is_asked: bool = False) -> str | list[dict]:
    """Returns the messages that the text of a row's `key` holds, or the text where it is nothing but text.

    Args:
        is_asked: by a gate, not learned: an attack may imitate a template's markup or a transcript.

    Raises:
        ValueError: it looks like a conversation, and cannot be read as one.
    """
    messages = _messages(text, key)
    if messages is not None:
        return messages
    if HH_TEXT.match(text):
        return _hh_turns(text)
    if is_asked:
        return text
    if RENDERED.match(text):
        raise ValueError(
            f"{key!r} is a conversation in a chat template's markup, {_start(text)}: the model's own template would be "
            "put around it: give messages, or text without markup"
        )
    if TRANSCRIPT.match(text):
        raise ValueError(
            f"{key!r} is a transcript, {_start(text)}: give messages with 'role' and 'content', or text without names "
            "of speakers"
        )
    return text


def calling(answer: Any) -> Any:
    """Returns the message that makes the calls, for an answer that is a list of tool calls; any other as it is."""
    if isinstance(answer, list) and answer and all(map(_is_call, answer)):
        return [{"role": "assistant", "content": "", "tool_calls": answer}]
    return answer


def check_content(text: str, key: str) -> None:
    """Raises ValueError if the content of a message is itself the text of messages or of their parts."""
    if _messages(text, f"{key}[].content") is not None:
        raise ValueError(f"{key!r} has a message whose content is the text of messages, {_start(text)}: give these")


def begins_with_prompt(row: dict, keys: tuple[str, ...]) -> bool:
    """Tells whether each answer of a row begins with its prompt's last turn and goes on after it."""
    asked = row["prompt"][-1]["content"].strip() if row["prompt"][-1]["role"] == "user" else ""
    answers = [row[key][0]["content"].lstrip() for key in keys]
    return bool(asked) and all(answer.startswith(asked) and answer.strip() != asked for answer in answers)


def is_long_prompt(row: dict) -> bool:
    """Tells whether an answer would hardly begin with the prompt's last turn by itself."""
    return len(row["prompt"][-1]["content"].split()) >= MIN_ECHO_WORDS


def _messages(text: str, key: str) -> list[dict] | None:
    """Returns the messages that JSON text or a repr holds; None for text that is no conversation."""
    is_object = OBJECTS.match(text) is not None
    if not is_object and not (OPENED.match(text) and KEY.search(text)):
        return None
    value = None if is_object else _parsed(text)
    if is_object or (value is None and BROKEN.match(text)):
        raise ValueError(
            f"{key!r} is the text of messages that cannot be read, {_start(text)}: write the data set with JSON in its "
            "cells, or as JSON Lines or Parquet"
        )
    if _is_message(value):
        return [value]
    if not isinstance(value, list | tuple | dict) or not value:
        return None
    inner = [*(value.values() if isinstance(value, dict) else value)]
    if not isinstance(value, dict) and all(map(_is_message, inner)):
        return inner
    if _is_part(value) or any(map(_holds_messages, inner)):
        raise ValueError(
            f"{key!r} is text that holds messages among other things, {_start(text)}: give a list of messages"
        )
    return None


def _parsed(text: str) -> Any:
    """Returns the value of JSON text, at any depth of encoding, or of a repr; None if it is neither."""
    value = text.strip("\ufeff \t\r\n")
    for _ in range(MAX_ENCODINGS):
        if not isinstance(value, str):
            return value
        try:
            value = parse_json(value.strip("\ufeff \t\r\n"))
        except Refused:  # a key that appears twice, of which a repr would be read as the last
            return None
        except ValueError:
            value = _read_repr(value)
    return None


def _read_repr(text: str) -> Any:
    def replaced(match: re.Match) -> str:
        return match[1] or ("}, " if match[2] else "")

    try:
        with warnings.catch_warnings():  # of escapes that Python does not know, as in '\d'
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.literal_eval(NUMPY.sub(replaced, text).strip("\ufeff \t\r\n"))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    has_turn = "role" in value and bool(value.keys() & {"content", "tool_calls"})
    return has_turn or ("value" in value and str(value.get("from")).lower() in SPEAKERS)


def _is_call(value: Any) -> bool:
    """Tells whether this is a tool call, in OpenAI's form or the bare one."""
    if not isinstance(value, dict) or value.keys() & {"role", "from"}:
        return False
    function = value.get("function", value)
    return isinstance(function, dict) and isinstance(function.get("name"), str) and "arguments" in function


def _is_part(value: Any) -> bool:
    """Tells whether this is a part of a message's content, as in `{"type": "text", "text": "..."}`."""
    return isinstance(value, dict) and str(value.get("type")) in PARTS


def _holds_messages(value: Any) -> bool:
    if isinstance(value, str):
        return bool(OPENED.match(value) and BROKEN.match(value))
    is_conversation = isinstance(value, list | tuple) and bool(value) and all(map(_is_message, value))
    return is_conversation or _is_message(value) or _is_part(value)


def _hh_turns(text: str) -> list[dict]:
    """Returns the turns of HH-RLHF's text. The last one may be left to the answer."""
    _, *parts = HH_TURN.split(text.removeprefix("\ufeff"))
    turns = [
        {"role": HH_ROLES[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    return turns[:-1] if len(turns) > 1 and turns[-1] == {"role": "assistant", "content": ""} else turns


def _start(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
