"""Reads a fast tokenizer as GGUF has it: tokens, merges, and the name of the rule that splits text before them.

folder with the tokenizer's files -> `Vocabulary`, or one line that says what of it llama.cpp would do otherwise

Byte-level BPE alone is known here. llama.cpp knows the rules that split text by name, so a rule is recognised by its
parts in tokenizer.json. What it makes of a text is compared again by the gate check_export, on held-out rows.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.rows import chat
from posttrain.weights.tensors import read_json

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens
LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How text is split, by the parts of `pre_tokenizer` -> llama.cpp's name for that.
SPLITS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (LETTERS + r"\p{N}{1,3}" + REST, "bytes"): "llama-bpe",
    (LETTERS + r"\p{N}" + REST, "bytes"): "qwen2",
}
NORMALIZERS = (None, "NFC")  # llama.cpp has no normalizer; text as people type it is NFC already
OTHER = "leave GGUF out of export.formats, or give a model with the tokenizer of Llama 3, Qwen or SmolLM"


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as GGUF has it."""

    split: str  # llama.cpp's name of the rule that splits text
    tokens: list[str]  # by number; as many as the embedding has rows
    types: list[int]
    merges: list[str]
    special: dict[str, int]  # bos, eos, pad, unk -> number
    ends: list[int]  # tokens that end an answer
    adds_bos: bool
    chat_template: str

    def add_to(self, writer: Any) -> None:
        """Adds the keys of the tokenizer to a file."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.split)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for role, number in self.special.items():
            getattr(writer, f"add_{role}_token_id")(number)
        for number in self.ends:  # llama.cpp knows one more by this key, and others by their text
            if number != self.special["eos"]:
                writer.add_eot_token_id(number)
                break
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_space_prefix(False)
        writer.add_chat_template(self.chat_template)


def read(folder: Path, *, num_rows: int, source: str) -> Vocabulary:
    """Reads the tokenizer of a model folder.

    Args:
        num_rows: of the embedding.

    Raises:
        ValueError: it is no byte-level BPE, or splits text by a rule that is not known here.
    """
    tokenizer, ours = read_json(folder / "tokenizer.json"), chat.ChatTokenizer(folder)
    split = _split(tokenizer, source=source)
    tokens, types = _tokens(tokenizer, num_rows)
    numbers = {token: number for number, token in enumerate(tokens)}
    roles = {role: ours.special_tokens.get(f"{role}_token") for role in ("bos", "eos", "pad", "unk")}
    special = {role: numbers[token] for role, token in roles.items() if token in numbers}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    begins = ours.encode("a", add_special_tokens=True)[:1] == [special.get("bos")]
    return Vocabulary(split, tokens, types, merges, special, ours.end_token_ids, begins, ours.chat_template)


def _split(tokenizer: dict[str, Any], *, source: str) -> str:
    """Returns llama.cpp's name of the rule by which text is split."""
    model, normalizer = tokenizer.get("model") or {}, (tokenizer.get("normalizer") or {}).get("type")
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback") or not model.get("merges"):
        raise ValueError(f"{source}: its tokenizer is no byte-level BPE; {OTHER}")
    if normalizer not in NORMALIZERS:
        raise ValueError(f"{source}: its tokenizer has the normalizer {normalizer}; {OTHER}")
    rule = tokenizer.get("pre_tokenizer") or {}
    parts = tuple(map(_part, rule.get("pretokenizers", [rule])))
    if parts not in SPLITS:
        raise ValueError(f"{source}: its tokenizer splits text by {json.dumps(rule)[:300]}; {OTHER}")
    return SPLITS[parts]


def _part(rule: dict[str, Any]) -> str:
    """Names one part of a rule; one with settings of its own has another name."""
    kind = rule.get("type")
    if kind == "ByteLevel" and not rule.get("add_prefix_space"):
        return "ByteLevel" if rule.get("use_regex", True) else "bytes"
    if kind == "Digits" and rule.get("individual_digits"):
        return "Digits"
    if kind == "Split" and rule.get("behavior") == "Isolated" and not rule.get("invert"):
        return (rule.get("pattern") or {}).get("Regex", "")
    return f"another {kind}"


def _tokens(tokenizer: dict[str, Any], num_rows: int) -> tuple[list[str], list[int]]:
    """Returns every row's token and its type; rows that no token has get a name of their own."""
    tokens = [f"[PAD{number}]" for number in range(num_rows)]
    types = [UNUSED] * num_rows
    for token, number in tokenizer["model"]["vocab"].items():
        if number < num_rows:
            tokens[number], types[number] = token, NORMAL
    for added in tokenizer.get("added_tokens") or []:
        if added["id"] < num_rows:
            tokens[added["id"]] = added["content"]
            types[added["id"]] = CONTROL if added.get("special") else USER_DEFINED
    return tokens, types
