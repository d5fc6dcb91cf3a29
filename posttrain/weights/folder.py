"""Checks the folder of a model, and picks the files that belong to it.

model folder -> names of its files, or what is wrong with it
"""

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from posttrain import storage
from posttrain.step import digests
from posttrain.weights.tensors import INDEX, SINGLE, check_unquantised, read_json, read_weights, weight_file_names

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
CONFIG_FILES = ("config.json", "generation_config.json")
# Settings that transformers turns into code of somebody else's, if a library for it is installed.
CODE_KEYS = ("auto_map", "custom_pipelines", "custom_generate", "kernel_config")
IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm")  # inside transformers and torch
JSON_FILES = (
    *CONFIG_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
)
SIDE_FILES = (
    *TOKENIZER_FILES,
    *CONFIG_FILES,
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
    "NOTICE*",
)


def check_model_folder(path: Path | str) -> None:
    """Refuses a folder that is not a whole, 16- or 32-bit, safetensors model with tokenizer and chat template.

    Raises:
        ValueError: names the file, what is wrong with it, and what to give instead.
    """
    path = Path(path)
    storage.check_links(path)
    check_asks_for_no_code(path, source=str(path))
    _check_config(str(path), read_json(path / "config.json"))
    if not any((path / name).is_file() for name in (SINGLE, INDEX)):
        raise ValueError(_no_weights(str(path), [file.name for file in path.iterdir()]))
    check_unquantised(path, read_weights(path))
    _check_tokenizer(path, source=str(path))


def check_gives_one_reward(settings: dict[str, Any], *, source: str) -> None:
    """Refuses a model's configuration that is not of a sequence classifier with one label.

    Raises:
        ValueError: naming what it is, and what to give instead.
    """
    (architecture, *_) = settings.get("architectures") or [""]
    num_labels = len(settings.get("id2label") or range(settings.get("num_labels", 2)))  # as transformers counts them
    if not architecture.endswith("ForSequenceClassification") or num_labels != 1:
        kind = f"{architecture or 'a model of no architecture'} with {num_labels} labels"
        raise ValueError(f"{source}: is {kind}; give a reward model, a ...ForSequenceClassification with one label")


def weights_size(source: str, sizes: Mapping[str, int | None]) -> int:
    """Adds up the sizes of the weight files among `sizes`, which maps file names to bytes."""
    if not {SINGLE, INDEX} & sizes.keys():
        raise ValueError(_no_weights(source, list(sizes)))
    return sum(sizes[name] or 0 for name in _select(sizes, (SINGLE, "model-*-of-*.safetensors")))


def has_chat_template(path: Path) -> bool:
    """Tells whether a chat template is in the model folder, in a file of its own or in tokenizer_config.json."""
    if (path / "chat_template.jinja").is_file():
        return bool((path / "chat_template.jinja").read_text(encoding="utf-8").strip())
    file = path / "tokenizer_config.json"
    return file.is_file() and bool(read_json(file).get("chat_template"))


def source_digest(path: Path | str) -> str:
    """Computes the SHA-256 of the files that `fetch` takes from a folder, and of no others."""
    path = Path(path)
    names = [*side_files(path), *weight_file_names(path), *([INDEX] if (path / INDEX).is_file() else [])]
    return digests.folder_digest({name: digests.digest(path / name) for name in names})


def side_files(folder: Path) -> list[str]:
    """Lists the files of a model beside its weights: configuration, tokenizer, template, licence."""
    return _select([file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()], SIDE_FILES)


def _check_config(source: str, settings: dict) -> None:
    if not settings.get("model_type"):
        raise ValueError(f"{source}/config.json: no model_type; give a model saved by transformers")


def check_asks_for_no_code(path: Path, *, source: str) -> None:
    """Refuses settings, in any JSON file of a model and at any depth, for which transformers would fetch code."""
    for name in JSON_FILES:
        if (path / name).is_file():
            for key, value in _settings(read_json(path / name)):
                _check_setting(f"{source}/{name}", key, value)


def _settings(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields the keys and values of a JSON value, at any depth."""
    if isinstance(value, dict):
        yield from value.items()
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _settings(inner)


def _check_setting(source: str, key: str, value: Any) -> None:
    if key in CODE_KEYS:
        raise ValueError(f"{source}: {key} asks for the model's own code; give a model that transformers knows")
    if key.endswith("_implementation"):  # of attention, experts; a mapping has one for each part of the model
        for choice in value.values() if isinstance(value, dict) else [value]:
            if choice is not None and choice not in IMPLEMENTATIONS:
                remedy = f"remove {key}, or give one of {', '.join(IMPLEMENTATIONS)}"
                raise ValueError(f"{source}: {key} = {choice!r} may name a kernel to download and run; {remedy}")


def _check_tokenizer(path: Path, *, source: str) -> None:
    if not (path / "tokenizer.json").is_file():
        raise ValueError(f"{source}: no tokenizer.json; save the fast tokenizer beside the model with save_pretrained")
    if not has_chat_template(path):
        where = "chat_template in tokenizer_config.json or chat_template.jinja"
        raise ValueError(f"{source}: no chat template ({where}); give an instruction-tuned model, or add its template")


def _no_weights(source: str, names: list[str]) -> str:
    if "adapter_config.json" in names:
        return f"{source}: is an adapter, not a model; give its base model, or merge it first"
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt", ".h5")) for name in names):
        return f"{source}: has pickled weights only, which can run code; save it as safetensors, with save_pretrained"
    return f"{source}: no {SINGLE} and no {INDEX}; give a model saved with save_pretrained"


def _select(names: Iterable[str], patterns: tuple[str, ...]) -> list[str]:
    """Returns the sorted names that match a pattern, in which `*` does not cross folders."""
    return [
        name for name in sorted(names) if any(fnmatch(name, p) and name.count("/") == p.count("/") for p in patterns)
    ]
