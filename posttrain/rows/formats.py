"""Defines the rows that every stage reads and writes, and converts TRL's formats into them.

messages | prompt, completion | [prompt,] chosen, rejected; plain text or conversations -> SFT rows or preference rows

    SFT row         {"id": str, "prompt": [message, ...], "completion": [message]}
    preference row  {"id": str, "prompt": [message, ...], "chosen": [message], "rejected": [message]}
    message         {"role": "system" | "user" | "assistant" | "tool", "content": str}

An assistant's message may have `tool_calls`, a tool's `tool_call_id` and `name`, and the first message of a prompt the
`tools` that the conversation offers, so that they go wherever it goes. Their forms are those of `posttrain.rows.tools`.

A message may have its thoughts and its `name` as well, `keys.FOR_TEMPLATE`, for the chat template to render; a row has
`left_out`, the names of the keys of the raw row that say nothing that a model should see: `keys.py` is their table.
completion, chosen and rejected hold one assistant message each. A row may have `references` as well: a list of the
answers that count as right, texts or other JSON values, for the gates to compare a model's answer with. Without them
the completion, or the chosen answer, is the one that counts. They are no part of what is trained on. A training row
that a data set's weight repeats has the id of the first as `repeats`.
"""

import hashlib
import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from posttrain.config.documents import parse_json
from posttrain.rows import disguise, foreign, keys, tools
from posttrain.rows.files import lines_of
from posttrain.rows.skeleton import plain, skeleton
from posttrain.rows.thoughts import said

ROLES = ("system", "user", "assistant", "tool")
ANSWER_KEYS = {"sft": ("completion",), "preference": ("chosen", "rejected")}
ACCEPTED = {
    "sft": "'messages', or 'prompt' and 'completion'",
    "preference": "'chosen' and 'rejected', with 'prompt' or as whole conversations",
}
SURROGATE = re.compile("[\ud800-\udfff]")
NO_CONTENT = ("id", "references", "repeats", "left_out")  # keys of a row that are no part of what is trained on

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JsonLines:
    """The rows of a file of any size, which is read anew by each iteration and never all in memory.

    Iterating raises ValueError, naming file and line, if it is missing, not UTF-8 or a line is not a JSON object.
    """

    path: str | Path
    name: str = ""  # the address of a downloaded file

    def __iter__(self) -> Iterator[dict]:
        name = self.name or str(self.path)
        for number, line in enumerate(lines_of(self.path, name=name), start=1):
            if line.strip():
                yield _json_object(line.removesuffix("\n"), name=name, number=number)


def read_jsonl(path: str | Path) -> list[dict]:
    """Reads all rows of a file."""
    return [*JsonLines(path)]


def _json_object(line: str, *, name: str, number: int) -> dict:
    try:
        row = parse_json(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{name}: line {number}: not valid JSON, {error.msg} at column {error.colno}: {shown(line[-60:])}: "
            "repair the line; is the file cut off?"
        ) from None
    except ValueError as error:
        raise ValueError(f"{name}: line {number}: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{name}: line {number}: is {shown(row)}, not a JSON object: write one object a line")
    return row


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    with open_jsonl(path) as file:
        for row in rows:
            write_row(file, row)


def open_jsonl(path: str | Path) -> TextIO:
    return open(path, "w", encoding="utf-8", newline="\n")


def write_row(file: TextIO, row: dict) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def shown(value: Any) -> str:
    """Returns a value for an error message: on one line, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def user_text(prompt: list[dict]) -> str:
    """Returns the user turns before the first answer, which are the same for every row of a conversation."""
    opening = []
    for message in prompt:
        if message["role"] == "user":
            opening.append(message["content"])
        elif message["role"] == "assistant" and opening:
            break
    return "\n".join(opening)


def message_text(message: dict) -> str:
    """Returns what a message says: its content, then its tool calls as JSON."""
    calls = [tools.calls_text(message["tool_calls"])] if message.get("tool_calls") else []
    return "\n".join(filter(None, [message["content"], *calls]))


def tools_of(prompt: list[dict]) -> list[dict]:
    """Returns the tools that a prompt offers."""
    return prompt[0].get("tools", []) if prompt else []


def normalise(text: str) -> str:
    """Removes differences of case, width and whitespace, invisible characters, and punctuation around words.

    Text that is nothing but punctuation keeps it.
    """
    words = unicodedata.normalize("NFKC", plain(text).casefold()).split()
    return " ".join(filter(None, map(_without_punctuation, words))) or " ".join(words)


def _without_punctuation(word: str) -> str:
    if word.isalnum():
        return word
    start, end = 0, len(word)
    while start < end and unicodedata.category(word[start]).startswith("P"):
        start += 1
    while end > start and unicodedata.category(word[end - 1]).startswith("P"):
        end -= 1
    return word[start:end]


def as_seen(text: str) -> str:
    """Keeps what the eye sees of a text: case, punctuation and indentation; other runs of blanks become one."""
    lines = (re.sub(r"(?<=\S)\s+", " ", line).rstrip() for line in plain(text).splitlines())
    return "\n".join(lines).strip()


def is_blank(text: str) -> bool:
    return not plain(text).strip()


def prompt_key(row: dict) -> str:
    """Returns the SHA-256 of the user text's skeleton, equal for all rows that ask the same thing."""
    return text_key(user_text(row["prompt"])).hex()


def text_key(*texts: str) -> bytes:
    """Returns the SHA-256 of the skeletons of texts."""
    return hashlib.sha256("\0".join(map(skeleton, texts)).encode()).digest()


def content_key(row: dict) -> str:
    """Returns the SHA-256 of prompt and answers, equal for exact duplicates."""
    content = {key: value for key, value in row.items() if key not in NO_CONTENT}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_row(row: dict, kind: str) -> None:
    """Raises ValueError, naming the key, unless `row` is an SFT or a preference row as described above."""
    if not isinstance(row.get("id"), str):
        raise ValueError(f"'id' is {shown(row.get('id'))}: give a string")
    for key in ("prompt", *ANSWER_KEYS[kind]):
        if not isinstance(row.get(key), list):
            raise ValueError(f"{key!r} is {shown(row.get(key))}: give a list of messages")
        for message in row[key]:
            _check_message(message, key)
    _check_prompt(row["prompt"])
    for key in ANSWER_KEYS[kind]:
        roles = [message["role"] for message in row[key]]
        if roles != ["assistant"]:
            raise ValueError(f"{key!r} has the roles {shown(roles)}: give one assistant message")
    _check_tools(row["prompt"], [message for key in ("prompt", *ANSWER_KEYS[kind]) for message in row[key]])
    _check_references(row.get("references"))


def references_of(row: dict) -> list[Any]:
    """Returns the answers that count as right: texts, or other JSON values, such as the call that the row teaches."""
    return row.get("references") or [own_reference(row["chosen" if "chosen" in row else "completion"][0])]


def own_reference(answer: dict) -> Any:
    """Returns what an assistant's message says as a reference: its calls, or its text."""
    return tools.call_values(answer["tool_calls"]) if "tool_calls" in answer else said(answer["content"])


def empty_key(row: dict, kind: str) -> str | None:
    """Returns the first key with a blank user or assistant turn, thoughts not counted; None if there is none."""
    for key in ("prompt", *ANSWER_KEYS[kind]):
        turns = [message for message in row[key] if message["role"] in ("user", "assistant")]
        texts = [message_text(turn) for turn in turns]
        if any(is_blank(said(text) if key != "prompt" else text) for text in texts):
            return key
    return None


def _check_message(message: Any, key: str) -> None:
    if not isinstance(message, dict):
        raise ValueError(f"{key!r} holds {shown(message)}: give messages with 'role' and 'content'")
    if message.get("role") not in ROLES:
        raise ValueError(f"{key!r} has a message with role {shown(message.get('role'))}: use one of {', '.join(ROLES)}")
    if message.get("tool_calls") and message["role"] != "assistant":
        raise ValueError(f"{key!r} has 'tool_calls' in a message of {message['role']}: only an assistant calls tools")
    content = message.get("content")
    if not isinstance(content, str):
        raise ValueError(f"{key!r} has a message with content {shown(content)}: give a string")
    if SURROGATE.search(content):
        raise ValueError(f"{key!r} has an unpaired UTF-16 surrogate in {shown(content)}: repair the text's encoding")
    for name in ("tools", "tool_calls"):
        if message.get(name) and (fault := _no_json(message[name])):
            raise ValueError(f"{key!r} has {name!r} with {fault}: repair {shown(message[name])}")


def _check_tools(prompt: list[dict], messages: list[dict]) -> None:
    """Raises ValueError for a row that calls tools and offers none: the model could know them by heart alone."""
    calls = [call for message in messages for call in message.get("tool_calls", [])]
    if calls and not tools_of(prompt):
        name = calls[0]["function"]["name"]
        raise ValueError(f"calls {name!r} in 'tool_calls', but offers no 'tools': give the row its tools as well")


def _check_references(references: Any) -> None:
    if references is None:
        return
    if not isinstance(references, list) or not references or None in references:
        raise ValueError(f"'references' is {shown(references)}: give a list of accepted answers, or leave it out")
    if fault := _no_json(references):
        raise ValueError(f"'references' is {shown(references)}: {fault}: give texts or other JSON values")


def _no_json(value: Any) -> str:
    """Says what is wrong with a value as JSON; empty if nothing is."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        return str(error)
    return "an unpaired UTF-16 surrogate" if SURROGATE.search(text) else ""


def _check_prompt(prompt: list[dict]) -> None:
    roles = [message["role"] for message in prompt]
    if "user" not in roles:
        raise ValueError(f"'prompt' has the roles {shown(roles)}: give at least one user turn")
    if roles[-1] not in ("user", "tool"):
        raise ValueError(f"'prompt' ends with the role {roles[-1]!r}: end it with a user turn")


def convert(raw: Iterable[dict], *, kind: str, source: str, ignored: Collection[str] = ()) -> tuple[list[dict], str]:
    """Converts all rows at once; returns them and the name of their format."""
    converted = [*convert_rows(raw, kind=kind, source=source, ignored=ignored)]
    return [row for _, rows in converted for row in rows], converted[0][0]


def convert_rows(
    raw: Iterable[dict], *, kind: str, source: str, ignored: Collection[str] = ()
) -> Iterator[tuple[str, list[dict]]]:
    """Yields for each raw row, in one of TRL's formats or in a foreign one, the name of the format and our rows.

    A conversation becomes one row per assistant turn that is to be learned. At the end, the log says what was changed
    and which keys were left out.

    Args:
        ignored: keys of rows and messages that are left out whatever they mean.

    Raises:
        ValueError: naming source, row number (from 1), key, value and remedy.
    """
    number, ids, first_format, done, echoes = 0, set(), None, Counter(), Echoes()
    for number, raw_row in enumerate(raw, start=1):
        try:
            read = keys.read(raw_row, kind, ignored=ignored)
            raw_row, foreign_format = foreign.to_trl(read.row, kind)
            format_name = format_of(raw_row, kind)
            format_name = foreign_format or format_name
            first_format = first_format or format_name
            if format_name != first_format:
                raise ValueError(f"is {format_name}, but the rows before it are {first_format}: use one format for all")
            converted = [_finished(row, read) for row in _convert_row(raw_row, kind)]
            converted = _with_tools(converted, tools.read_tools(raw_row.get("tools")))
            if raw_row.get("references") is not None:  # of a conversation: for its last answer
                converted[-1]["references"] = raw_row["references"]
            _name(converted, raw_row.get("id"), number=number, ids=ids)
            _check_converted(converted, kind)
            echoes.add(converted, kind, number=number)
        except ValueError as error:
            raise ValueError(f"{source}: row {number}: {error}") from None
        done.update([*read.done, *(f"left out {key}" for key in read.left_out)])
        yield format_name, converted
    if not number:
        raise ValueError(f"{source}: holds no rows: give a data set with {ACCEPTED[kind]}")
    echoes.check(source, num_rows=number)
    if done:
        logger.info("%s: %s", source, "; ".join(f"{what} ({count} rows)" for what, count in done.items()))


def format_of(raw: dict, kind: str) -> str:
    """Returns the name of a row's format, such as `prompt, completion (plain text)`. A null counts as missing."""
    if not isinstance(raw, dict):
        raise ValueError(f"is {shown(raw)}: give an object with {ACCEPTED[kind]}")
    if kind == "sft" and raw.get("messages") is not None:
        return "messages"
    keys = ("prompt", *ANSWER_KEYS[kind])
    present = [key for key in keys if raw.get(key) is not None]
    missing = [key for key in keys if key not in present and (kind, key) != ("preference", "prompt")]
    if missing:
        names = " and ".join(repr(key) for key in missing)
        if raw.get("text") is not None and not present:
            raise ValueError(
                "has 'text' and no turns: nothing tells the answer from its prompt, so the prompt would be trained on "
                f"too: give {ACCEPTED[kind]}"
            )
        raise ValueError(f"{names} missing, the keys are {shown([*raw])}: give {ACCEPTED[kind]}")
    return f"{', '.join(present)} ({'plain text' if isinstance(raw[present[-1]], str) else 'conversational'})"


def _convert_row(raw: dict, kind: str) -> list[dict]:
    if kind == "preference":
        return [_preference_row(raw)]
    if raw.get("messages") is not None:
        conversation = _messages(raw["messages"], "messages", role=None)
        return _turns(conversation, start=0)
    prompt = _messages(raw["prompt"], "prompt", role="user")
    _check_prompt(prompt)
    completion = _messages(raw["completion"], "completion", role="assistant")
    if len(completion) > len(prompt) and completion[: len(prompt)] == prompt:
        completion = completion[len(prompt) :]
    return _turns(prompt + completion, start=len(prompt))


def _finished(row: dict, read: keys.Read) -> dict:
    """Returns a row with the system turn of its column, without marks, and with the names of what it was left out."""
    row = {key: [keys.without_marks(message) for message in messages] for key, messages in row.items()}
    left_out = {"left_out": [*read.left_out]} if read.left_out else {}
    return row | {"prompt": keys.with_system(row["prompt"], read.system)} | left_out


class Echoes:
    """Counts rows whose answers begin with their own prompt, which a model would learn to say twice."""

    def __init__(self):
        self.rows: list[int] = []

    def add(self, converted: list[dict], kind: str, *, number: int) -> None:
        """Raises ValueError where this is no accident: the prompt is long."""
        for row in converted:
            if disguise.begins_with_prompt(row, ANSWER_KEYS[kind]):
                if disguise.is_long_prompt(row):
                    raise ValueError(self._fault(row, kind))
                self.rows += [number] if number not in self.rows[-1:] else []
                self.example = self._fault(row, kind)

    def check(self, source: str, *, num_rows: int) -> None:
        """Raises ValueError if at least half of the rows are so: `Good morning` may be answered by `Good morning!`."""
        if 2 * len(self.rows) >= num_rows:
            raise ValueError(f"{source}: row {self.rows[-1]} and {len(self.rows) - 1} others: {self.example}")

    @staticmethod
    def _fault(row: dict, kind: str) -> str:
        names = " and ".join(map(repr, ANSWER_KEYS[kind]))
        answer = row[ANSWER_KEYS[kind][-1]][0]["content"]
        return f"{names} begin with their own prompt, {shown(answer)}: cut it from the answers"


def _with_tools(rows: list[dict], offered: list[dict]) -> list[dict]:
    """Puts the tools of a raw row on the first message of each row that came of it."""
    if not offered:
        return rows
    return [row | {"prompt": [row["prompt"][0] | {"tools": offered}, *row["prompt"][1:]]} for row in rows]


def _messages(value: Any, key: str, *, role: str | None) -> list[dict]:
    """Returns messages in our form; a string becomes one message of `role`."""
    if isinstance(value, str) and role is not None:
        value = [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        alternative = "" if role is None else "a string or "
        raise ValueError(f"{key!r} is {shown(value)}: give {alternative}a list of messages")
    messages = [_message(message, key) for message in value]
    for message in messages:
        _check_message(message, key)
    return messages


def _message(message: Any, key: str) -> Any:
    """Returns a message with the keys of our form alone; what is no message as it is, to be refused."""
    if not isinstance(message, dict):
        return message
    kept = {"role": message.get("role"), "content": message.get("content")}
    if message.get("tool_calls"):
        try:
            kept |= {"content": kept["content"] or "", "tool_calls": tools.read_calls(message["tool_calls"])}
        except ValueError as error:
            raise ValueError(f"{key!r}: {error}") from None
    kept |= {name: message[name] for name in ("train", *keys.FOR_TEMPLATE) if name in message}
    names = ("tool_call_id", "name") if kept["role"] == "tool" else ()
    return kept | {name: message[name] for name in names if isinstance(message.get(name), str)}


def _turns(conversation: list[dict], *, start: int) -> list[dict]:
    """Returns one row for each assistant turn to be learned, at or after `start`, that follows a user turn."""
    rows = []
    for index, message in enumerate(conversation):
        asked = any(earlier["role"] == "user" for earlier in conversation[:index])
        if index >= start and message["role"] == "assistant" and asked and keys.is_trained(message):
            rows.append({"prompt": conversation[:index], "completion": [message]})
    if not rows:
        roles = [message["role"] for message in conversation]
        if not all(map(keys.is_trained, conversation)):
            raise ValueError(f"has the roles {shown(roles)} and no answer that is to be learned: remove the row")
        raise ValueError(f"has the roles {shown(roles)}: give an assistant turn after a user turn")
    return rows


def _preference_row(raw: dict) -> dict:
    chosen, rejected = (_messages(_listed(raw[key]), key, role="assistant") for key in ("chosen", "rejected"))
    if not (keys.is_trained(chosen[-1]) and keys.is_trained(rejected[-1])):
        raise ValueError("'chosen' or 'rejected' ends with an answer that is not to be learned: remove the row")
    explicit = None if raw.get("prompt") is None else _messages(raw["prompt"], "prompt", role="user")
    if chosen[0]["role"] == rejected[0]["role"] == "assistant":
        if explicit is None:
            raise ValueError(
                f"'prompt' missing, 'chosen' is {shown(raw['chosen'])}: give 'prompt' or whole conversations"
            )
        return {"prompt": explicit, "chosen": chosen, "rejected": rejected}
    shared = _num_shared(chosen, rejected)
    prompt = chosen[:shared]
    if explicit is not None:
        prompt = _agreed(explicit, prompt)
    return {"prompt": prompt, "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _listed(answer: Any) -> Any:
    """Makes a list of an answer that is a single message."""
    return [answer] if isinstance(answer, dict) else answer


def _agreed(explicit: list[dict], prompt: list[dict]) -> list[dict]:
    """Returns how both conversations begin, with the system turn of the explicit prompt if it alone has one.

    Raises:
        ValueError: the two differ.
    """
    system, others = ([one for one in turns if one["role"] == "system"] for turns in (explicit, prompt))
    if normalise(user_text(explicit)) != normalise(user_text(prompt)):
        different = user_text(explicit)
    elif system and others and [one["content"] for one in system] != [one["content"] for one in others]:
        different = system[0]["content"]
    elif (later := _first_difference(explicit, prompt)) is not None:
        different = later["content"]
    else:
        return prompt if others else system + prompt
    raise ValueError(f"'prompt' {shown(different)} is not how 'chosen' and 'rejected' begin: drop or correct it")


def _first_difference(explicit: list[dict], prompt: list[dict]) -> dict | None:
    """Returns the first turn of several in which an explicit prompt differs; one that ends early leaves nothing out."""
    spoken, begun = ([one for one in turns if one["role"] != "system"] for turns in (explicit, prompt))
    if len(spoken) == 1:
        return None  # compared as text
    pairs = zip(spoken, [*begun, *[None] * len(spoken)], strict=False)
    return next((one for one, other in pairs if other is None or _said(one) != _said(other)), None)


def _said(message: dict) -> tuple[str, str]:
    return message["role"], normalise(message["content"])


def _num_shared(chosen: list[dict], rejected: list[dict]) -> int:
    """Returns how many messages both conversations begin with; the last of each is always its answer."""
    limit = min(len(chosen), len(rejected)) - 1
    return next((index for index in range(limit) if chosen[index] != rejected[index]), limit)


def _name(converted: list[dict], raw_id: Any, *, number: int, ids: set[str]) -> None:
    """Puts an id on each row: its own, with the turn if there are several, with the row number if it is taken."""
    has_id = isinstance(raw_id, str | int) and not isinstance(raw_id, bool) and raw_id != ""
    base = str(raw_id) if has_id else f"row-{number}"
    for turn, row in enumerate(converted, start=1):
        name = base if len(converted) == 1 else f"{base}-turn-{turn}"
        unique = name if name not in ids else f"{name}-row-{number}"
        ids.add(unique)
        converted[turn - 1] = {"id": unique, **row}


def _check_converted(converted: list[dict], kind: str) -> None:
    for row in converted:
        check_row(row, kind)
        key = empty_key(row, kind)
        if key is not None:
            raise ValueError(f"{key!r} has an empty turn, {shown(row[key])}: fill it in or remove the row")
