"""Meaning of the keys of raw rows and of their messages: the one table for training, preferences and gates.

raw row, kind -> the row with the keys that formats.py reads, its system turn, the names of what is left out

Each key that holds something is honoured, or is an error with a remedy, or is known to say nothing that a model should
see and is left out by name. A key of unknown meaning is an error too: a column such as `context` may be what the answer
depends on, a model trained without it passes every gate, and one line of `data.ignored_keys` says that it is not.

    honoured     the formats' own; `system`; Alpaca's `input`; a message's `weight`, `train` and the like; its thoughts
                 and its `name`, which the data gate refuses where the model's template does not read them
    refused      REFUSED and REFUSED_IN_MESSAGES
    left out     columns and message keys named like ids, sources, scores, labels, dates and counts; the other kind's
"""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from posttrain.rows import disguise

ALWAYS = {"id", "references", "tools"}
ANSWERED = {"sft": {"completion"}, "preference": {"chosen", "rejected"}}
FAMILIES = {  # of formats, by their first key: the keys that belong together
    "messages": {"messages"},
    "prompt": {"prompt", "completion", "chosen", "rejected", "input"},
    "conversations": {"conversations", "chosen", "rejected"},
    "instruction": {"instruction", "input", "output", "history", "text", "chosen", "rejected"},
}
OTHER_KIND = {"sft": {"chosen", "rejected"}, "preference": {"messages", "completion"}}
ANSWERS = ("completion", "chosen", "rejected")
CONVERSATIONS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")
SYSTEM = ("system", "system_prompt", "system_message", "system_instruction")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
FOR_TEMPLATE = (*THOUGHTS, "name")  # of messages; the data gate asks whether the template reads them
TRAINED = ("weight", "train", "training", "trainable", "loss", "loss_mask")  # of a message: 1 trains, 0 is context
UNTRAINED = ("masked",)
TOOL_ROLES = ("tool", "observation", "function_response")
OF_MESSAGES = {"role", "content", "from", "value", "tool_calls", "tool_call_id"}

MEDIA = "the line trains on text: remove these rows, or describe what they show in the text"
CALLS = "write them in today's form, 'tools' and 'tool_calls'"
IN_TURN = "put it into the assistant's message as 'reasoning_content'"
TOKENS = "the line renders and tokenises rows itself: give messages, or prompt and completion"
PER_ROW = "rows have no weights of their own: repeat or remove rows, or give two data sets"
REFUSED = {
    **dict.fromkeys(("functions", "function_call"), CALLS),
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios", "image_url", "pixel_values"), MEDIA),
    **dict.fromkeys(("input_ids", "attention_mask", "completion_mask", "assistant_masks", "position_ids"), TOKENS),
    **dict.fromkeys(("weight", "weights", "sample_weight", "loss_weight", "loss_scale", "margin"), PER_ROW),
    **dict.fromkeys(("train", "loss", "loss_mask", "masked", "trainable"), "put it on the messages that it is about"),
    **dict.fromkeys(("label", "labels"), "remove the rows that are not to be learned, or list it in data.ignored_keys"),
    **dict.fromkeys((*THOUGHTS, "thought", "thoughts", "cot", "chain_of_thought", "think"), IN_TURN),
    "chat_template_kwargs": "set these values in the model's chat template, which is published with it",
    "chat_template": "put it into the model's folder as chat_template.jinja",
    "tool_choice": "write in the system turn when a tool is to be called",
    "documents": "write them into the prompt",
    "context": "write it into the prompt",
    "history": "give the earlier turns as messages",
    "split": "give the rows that are to be trained on alone; the line holds out rows by itself",
}
PART_OF_PROMPT = ("chat_template_kwargs", "documents", "context", "history")
REFUSED_IN_MESSAGES = {
    "function_call": CALLS,
    "functions": CALLS,
    **{key: remedy for key, remedy in REFUSED.items() if remedy in (MEDIA, TOKENS)},
    **dict.fromkeys(("train_detail", "training_detail"), "split the turn, and give each part 'train' of its own"),
    **dict.fromkeys(("mask", "prefix", "partial"), "say with 'weight' 0 or 1 which turns are learned"),
    "refusal": "write it as the content",
}
# Names, or the last word of one: prompt_id, chosen_score.
LABEL = re.compile(
    r"ids?|idx|index|uuid|guid|hash|md5|sha256|checksum|sources?|origin|dataset|corpus|ur[li]|link|licen[sc]e|author|"
    r"annotator|creator|provider|model|generator|scores?|ratings?|rank|quality|difficulty|confidence|similarity|"
    r"perplexity|probability|reward|category|categories|topics?|domain|type|tags?|mistake|language|lang|locale|date|"
    r"time|timestamp|datetime|ts|created|updated|year|version|revision|count|length|len|tokens|chars|num|size|status|"
    r"metadata|meta|toxicity"
)
FIRST_WORDS = {"num", "n", "nb", "is", "has", "score", "rating", "created", "updated", "len", "avg", "mean"}
NAMES = {"parallel_tool_calls", "model_name", "dataset_name", "annotations", "data_source"}
WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
MAX_LABEL_CHARS = 300  # a longer text under such a name, or one of several lines, is more than a label


class UnknownKey(ValueError):
    """A row or message has a key of unknown meaning."""

    def __init__(self, key: str, message: str):
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Read:
    """A raw row whose keys have been read."""

    row: dict[str, Any]
    system: str | None = None  # of a column
    left_out: tuple[str, ...] = ()
    done: tuple[str, ...] = ()  # what was changed, for the log


def read(raw: Any, kind: str, *, ignored: Collection[str] = ()) -> Read:
    """Reads the keys of a row.

    Raises:
        ValueError: naming the key, its value and the remedy.
    """
    if not isinstance(raw, dict):
        return Read(raw)
    row = {key: value for key, value in raw.items() if key not in ignored or key in CONVERSATIONS}
    left_out, done = [key for key in raw if key not in row and has_value(raw[key])], []
    for key in CONVERSATIONS:
        if isinstance(row.get(key), str):
            row[key] = disguise.unpacked(row[key], key)
            done += [f"{key} read from the text of messages"] if not isinstance(row[key], str) else []
        if key in ANSWERS and (called := disguise.calling(row.get(key))) is not row.get(key):
            row[key] = called
            done.append(f"{key} read as tool calls")
    family = _family(row, kind)
    if family is None:  # the formats say what is missing
        return Read(row)
    system = _system(row)
    for key in [key for key in row if key not in ALWAYS | FAMILIES[family] and has_value(row[key])]:
        if key not in SYSTEM:
            _check_column(key, row, kind)
            left_out.append(key)
        row.pop(key)
    for key in CONVERSATIONS:
        if isinstance(row.get(key), dict):  # an answer that is one message
            row[key] = [row[key]]
        if isinstance(row.get(key), list):
            row[key] = [_message(one, key, ignored, left_out) for one in row[key]]
    if has_value(row.get("input")) and family == "prompt":
        row["prompt"] = _joined(row["prompt"], row.pop("input"))
        done.append("input joined to the prompt")
    done += ["the system column made the system turn"] if system else []
    return Read(row, system, tuple(dict.fromkeys(left_out)), tuple(done))


def unknown_keys(raw: Any, kind: str) -> list[str]:
    """Lists the keys of a row and of its messages whose meaning is unknown; none, if something else is wrong there."""
    unknown: list[str] = []
    while True:
        try:
            read(raw, kind, ignored=unknown)
        except UnknownKey as error:
            unknown.append(error.key)
        except ValueError:
            return []
        else:
            return unknown


def read_asked(raw: dict) -> Read:
    """Reads the keys of a prompt that a gate asks. Nothing is learned from it, so that any other column is left out.

    Raises:
        ValueError: naming the key, its value and the remedy.
    """
    row, left_out = {key: raw.get(key) for key in ("id", "prompt", "tools")}, []
    if isinstance(row["prompt"], str):
        row["prompt"] = disguise.unpacked(row["prompt"], "prompt", is_asked=True)
    for key in [key for key in raw if key not in row and has_value(raw[key])]:
        if REFUSED.get(key) in (MEDIA, CALLS, TOKENS) or key in PART_OF_PROMPT:
            raise ValueError(f"{key!r} is {_shown(raw[key])}: {REFUSED[key]}")
        left_out += [key] if key not in (*SYSTEM, "input") else []
    if isinstance(row["prompt"], list):
        row["prompt"] = [without_marks(_message(one, "prompt", (), left_out)) for one in row["prompt"]]
    if has_value(raw.get("input")):
        row["prompt"] = _joined(row["prompt"], raw["input"])
    return Read(row, _system(raw), tuple(left_out))


def with_system(prompt: list[dict], system: str | None) -> list[dict]:
    """Returns a prompt that begins with the system turn of a column.

    Raises:
        ValueError: it has one already.
    """
    if system is None:
        return prompt
    if any(message["role"] == "system" for message in prompt):
        raise ValueError(f"has a system turn, and a column with {_shown(system)}: remove one of the two")
    return [{"role": "system", "content": system}, *prompt]


def is_trained(message: dict) -> bool:
    """Tells whether an assistant's message is to be learned; one that is not stays as context."""
    return message.get("train", True)


def without_marks(message: Any) -> Any:
    """Returns a message without the mark that `is_trained` reads."""
    return {key: value for key, value in message.items() if key != "train"} if isinstance(message, dict) else message


def has_value(value: Any) -> bool:
    """Tells whether a cell says anything: a null, an empty text or list, and pandas' NaN do not."""
    if isinstance(value, float):
        return not math.isnan(value)
    return value is not None and value not in ("", [], {})


def names_label(name: str, value: Any) -> bool:
    """Tells whether a key is named like what is said about a row, such as an id or a score, and is as short."""
    if isinstance(value, str) and (len(value) > MAX_LABEL_CHARS or "\n" in value.strip()):
        return False
    words = [word.lower() for word in WORD.findall(name)]
    return name.lower() in NAMES or bool(words) and (LABEL.fullmatch(words[-1]) is not None or words[0] in FIRST_WORDS)


def _family(row: dict, kind: str) -> str | None:
    """Returns the first key of a row's format; None if the row is in no format."""
    present = {key for key in row if row[key] is not None}
    if kind == "sft" and "messages" in present:
        return "messages"
    whole = {"prompt": ANSWERED[kind] | ({"prompt"} if kind == "sft" else set()), "conversations": {"conversations"}}
    whole["instruction"] = {"instruction", "output"} if kind == "sft" else {"instruction", *ANSWERED[kind]}
    order = (
        ("prompt", "conversations", "instruction")
        if "prompt" in present
        else ("conversations", "instruction", "prompt")
    )
    return next((name for name in order if whole[name] <= present), None)


def _system(row: dict) -> str | None:
    """Returns the system turn that a column gives."""
    texts = {key: row[key] for key in SYSTEM if has_value(row.get(key))}
    if len(texts) > 1:
        raise ValueError(f"has {' and '.join(map(repr, texts))}: give one of them")
    for key, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{key!r} is {_shown(text)}: give a text, which becomes the system turn")
        disguise.check_content(text, key)
        return text if text.strip() else None
    return None


def _check_column(key: str, row: dict, kind: str) -> None:
    """Raises ValueError unless a column may be left out."""
    value = row[key]
    if key == "prompt":  # beside messages, as in UltraChat: their first question once more
        asked = next(
            (one.get("content") for one in row["messages"] if isinstance(one, dict) and one.get("role") == "user"), ""
        )
        if not isinstance(value, str) or value.strip() != str(asked).strip():
            raise ValueError(f"'prompt' {_shown(value)} is not the first question of 'messages': give one of the two")
    elif key in OTHER_KIND[kind]:
        return
    elif key.lower() in REFUSED:
        raise ValueError(f"{key!r} is {_shown(value)}: {REFUSED[key.lower()]}")
    elif any(key in keys for keys in FAMILIES.values()):
        raise ValueError(f"{key!r} {_shown(value)} belongs to another format than the row's {_shown([*row])}: give one")
    elif not names_label(key, value):
        raise UnknownKey(
            key,
            f"{key!r} is a key of unknown meaning, {_shown(value)}: put what the model should see into the messages, "
            "or list the key in data.ignored_keys",
        )


def _message(message: Any, key: str, ignored: Collection[str], left_out: list[str]) -> Any:
    """Returns a message with the keys that formats.py reads; what is no message is for formats.py to refuse."""
    if not isinstance(message, dict):
        return message
    kept: dict[str, Any] = {}
    for name, value in message.items():
        if name in OF_MESSAGES:
            kept[name] = value
        elif not has_value(value):
            continue
        elif name in ignored:
            left_out.append(f"{key}[].{name}")
        elif name in (*TRAINED, *UNTRAINED):
            kept["train"] = _is_to_train(message, name, key)
        elif name in FOR_TEMPLATE:
            kept[name] = _text_for_template(message, name, key)
        else:
            _check_message_key(name, value, key)
            left_out.append(f"{key}[].{name}")
    for name in ("content", "value"):
        if name in kept and message.get("role", message.get("from")) not in TOOL_ROLES:  # tools may return messages
            kept[name] = _content(kept[name], key)
    return kept


def _check_message_key(name: str, value: Any, key: str) -> None:
    if name.lower() in REFUSED_IN_MESSAGES:
        raise ValueError(f"{key!r} has a message with {name!r} {_shown(value)}: {REFUSED_IN_MESSAGES[name.lower()]}")
    if not names_label(name, value):
        raise UnknownKey(
            name,
            f"{key!r} has a message with {name!r}, a key of unknown meaning, {_shown(value)}: put what the model "
            "should see into the content, or list the key in data.ignored_keys",
        )


def _is_to_train(message: dict, name: str, key: str) -> bool:
    """Returns whether a message's mark says that it is to be learned."""
    value, others = message[name], [one for one in (*TRAINED, *UNTRAINED) if has_value(message.get(one))]
    if value not in (0, 1):
        raise ValueError(f"{key!r} has a message with {name!r} {_shown(value)}: give 1 to learn a turn, 0 for context")
    marks = {bool(message[one]) != (one in UNTRAINED) for one in others}
    if len(marks) > 1:
        raise ValueError(
            f"{key!r} has a message whose {' and '.join(map(repr, others))} contradict each other: give one"
        )
    is_answer = message.get("role", message.get("from")) in ("assistant", "gpt", "chatgpt", "function_call")
    if not is_answer and marks == {True}:
        raise ValueError(
            f"{key!r} has {name!r} {_shown(value)} in a turn that is not an answer: only those are learned"
        )
    return marks.pop()


def _text_for_template(message: dict, name: str, key: str) -> str:
    value = message[name]
    if not isinstance(value, str):
        raise ValueError(f"{key!r} has a message with {name!r} {_shown(value)}: give a text")
    others = [one for one in THOUGHTS if one != name and name in THOUGHTS and has_value(message.get(one))]
    if others:
        raise ValueError(f"{key!r} has a message with {name!r} and {others[0]!r}: give the one that the template reads")
    return value


def _content(content: Any, key: str) -> Any:
    """Returns the text of a content that is a list of parts, and any other content as it is."""
    if isinstance(content, str):
        disguise.check_content(content, key)
    if not isinstance(content, list):
        return content
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if not content or not all(isinstance(text, str) for text in texts):
        part = next((part for part, text in zip(content, texts, strict=True) if not isinstance(text, str)), content)
        raise ValueError(f"{key!r} has a message whose content holds {_shown(part)}, which is not text: {MEDIA}")
    return "".join(texts)


def _joined(prompt: Any, addition: Any) -> str:
    """Joins Alpaca's `input` to its request by a line feed."""
    if not isinstance(prompt, str) or not isinstance(addition, str):
        raise ValueError(f"'input' is {_shown(addition)} beside a prompt of messages: write it into the user turn")
    return f"{prompt}\n{addition}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
