"""Compares the tokens of a tokenizer with the rows of the embedding: one beyond them would crash a training halfway.

folder with the tokenizer's files, layout of the model -> what to warn of, or one line
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.weights.targets import Layout
from posttrain.weights.tensors import read_json

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token")
CONFIG, ROLES_FILE, TEMPLATE = "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"


def check_tokens(folder: Path, layout: Layout) -> str | None:
    """Returns a warning of tokens without a row in the embedding, of which no ordinary text consists.

    Raises:
        ValueError: ordinary text, a special token or the chat template needs a row that the embedding lacks, or the
            configuration counts other rows than there are.
    """
    if layout.embedding is None or not (folder / "tokenizer.json").is_file():
        return None
    num_rows = layout.embedding[0]
    wanted = layout.config.get("vocab_size", num_rows)
    if wanted != num_rows:
        raise ValueError(
            f"base_model: {layout.source}: vocab_size of config.json is {wanted}, the embedding has {num_rows} rows: "
            "transformers would not load it; save the model again with save_pretrained"
        )
    tokenizer = read_json(folder / "tokenizer.json")
    words = {text: number for text, number in _words(tokenizer) if number >= num_rows}
    added = {text: number for text, number in _added(tokenizer) if number >= num_rows}
    special = _special(folder)
    needed = words | {text: number for text, number in added.items() if text in special or text in _template(folder)}
    if needed:
        text, number = max(needed.items(), key=lambda pair: pair[1])
        raise ValueError(
            f"base_model: {layout.source}: tokenizer.json numbers its tokens up to {number} ({text!r}), the embedding "
            f"has {num_rows} rows; take the model's own tokenizer, or resize_token_embeddings and save again"
        )
    if not added:
        return None
    return f"{layout.source}: rows must not contain {', '.join(sorted(added))}: the embedding has no row for that"


def _words(tokenizer: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yields the tokens of ordinary text. Unigram lists them by number, the other models map them to it."""
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, dict):
        yield from vocabulary.items()
    else:
        yield from ((str(entry[0]), number) for number, entry in enumerate(vocabulary))


def _added(tokenizer: dict[str, Any]) -> Iterator[tuple[str, int]]:
    yield from ((token["content"], token["id"]) for token in tokenizer.get("added_tokens") or [])


def _special(folder: Path) -> set[str]:
    """Returns the tokens that have a role: the beginning and end of a text, padding."""
    files = [read_json(folder / name) for name in (CONFIG, ROLES_FILE) if (folder / name).is_file()]
    tokens = [file.get(role) for file in files for role in ROLES]
    return {token["content"] if isinstance(token, dict) else str(token) for token in tokens if token}


def _template(folder: Path) -> str:
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    return str(read_json(folder / CONFIG).get("chat_template") or "") if (folder / CONFIG).is_file() else ""
