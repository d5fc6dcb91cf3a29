"""Turns rows of ShareGPT and Alpaca into rows in TRL's formats, by their keys.

conversations [+ system] [+ chosen, rejected] | instruction [+ input, system, history], output or chosen, rejected
-> messages | prompt, completion | prompt, chosen, rejected; all other keys stay as they are

Alpaca's instruction and input become one user turn, joined by a line feed. Its history is context, not trained on.
"""

from typing import Any

from posttrain.rows import tools

SHARE_GPT = "ShareGPT (conversations)"
ALPACA = "Alpaca (instruction)"
KEYS = {  # that a conversion reads
    SHARE_GPT: ("conversations", "system"),
    ALPACA: ("instruction", "input", "output", "system", "history", "text"),  # text: all of the row in one template
}
OF_TRL = ("messages", "prompt", "completion")
ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


def to_trl(raw: Any, kind: str) -> tuple[Any, str | None]:
    """Returns a raw row in one of TRL's formats, and the name of its own format if that is another.

    Raises:
        ValueError: a turn has an unknown form.
    """
    if not isinstance(raw, dict) or any(raw.get(key) is not None for key in OF_TRL):
        return raw, None
    if raw.get("conversations") is not None:
        return _without(raw, SHARE_GPT) | _share_gpt(raw, kind), SHARE_GPT
    if raw.get("instruction") is not None and (kind == "preference" or raw.get("output") is not None):
        return _without(raw, ALPACA) | _alpaca(raw, kind), ALPACA
    return raw, None


def _without(raw: dict, name: str) -> dict:
    return {key: value for key, value in raw.items() if key not in KEYS[name]}


def _share_gpt(raw: dict, kind: str) -> dict:
    turns = _turns(raw["conversations"], "conversations")
    if raw.get("system"):
        if turns and turns[0]["role"] == "system":
            raise ValueError("has a 'system' key, and 'conversations' begins with a system turn: remove one of them")
        turns = [{"role": "system", "content": raw["system"]}, *turns]
    if kind == "sft":
        return {"messages": turns}
    return {"prompt": turns} | {
        key: _answer(raw[key], key) for key in ("chosen", "rejected") if raw.get(key) is not None
    }


def _answer(value: Any, key: str) -> Any:
    """Returns an answer that may be text, one turn or a list of turns."""
    return value if isinstance(value, str) else _turns([value] if isinstance(value, dict) else value, key)


def _turns(value: Any, key: str) -> list[dict]:
    if not isinstance(value, list):
        raise ValueError(f"{key!r} is a {type(value).__name__}: give a list of turns with 'from' and 'value'")
    return [_turn(one, key) for one in value]


def _turn(turn: Any, key: str) -> dict:
    """Returns a turn with role and content; one that has these already stays as it is."""
    if isinstance(turn, dict) and "role" in turn:
        return turn
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or turn.get("from") not in ROLES:
        raise ValueError(
            f"{key!r} holds {str(turn)[:80]!r}: give 'from' ({', '.join(ROLES)}) and 'value', a text; "
            "or messages with 'role' and 'content'"
        )
    rest = {name: value for name, value in turn.items() if name not in ("from", "value")}
    if turn["from"] == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": tools.read_calls(turn["value"])} | rest
    return {"role": ROLES[turn["from"]], "content": turn["value"]} | rest


def _alpaca(raw: dict, kind: str) -> dict:
    system = [{"role": "system", "content": raw["system"]}] if raw.get("system") else []
    asked = "\n".join(filter(None, (_text(raw, "instruction"), _text(raw, "input"))))
    prompt = [*system, *_history(raw.get("history") or []), {"role": "user", "content": asked}]
    return {"prompt": prompt} | ({"completion": _text(raw, "output")} if kind == "sft" else {})


def _history(pairs: Any) -> list[dict]:
    """Returns the earlier turns: Alpaca gives pairs of a question and its answer."""
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"'history' is {str(pairs)[:80]!r}: give a list of pairs, question and answer")
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _text(raw: dict, key: str) -> str:
    value = raw.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key!r} is {str(value)[:80]!r}: give a text")
    return value or ""
