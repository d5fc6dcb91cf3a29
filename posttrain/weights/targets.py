"""Tells every step which tensors of a model a LoRA training changes: preflight, training, merge, the gates.

config.json and the names and shapes of the tensors, target_modules -> module names for peft and unsloth, the tensors of
each; or one line with the setting, its value and what the model has instead

Needs no torch: preflight runs where there is none. What transformers does to the weights when it loads them is known by
these rules: a matrix inside a numbered layer is a linear layer, except experts and their router, which transformers
fuses into tensors that peft adapts as `target_parameters`, and nothing here merges those.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.weights.tensors import read_json, read_weights

WEIGHT = ".weight"
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
HEAD = "lm_head.weight"
NO_ADAPTER = "of which no adapter can be merged"
LAYER = re.compile(r"^(.+?)\.\d+\.")  # everything up to the number of a layer
ATTENTION = re.compile(r"(^|[._])(attn|attention)([._]|$)")
EXPERTS = re.compile(r"\.experts\.|\.block_sparse_moe\.|\.moe\.")
ROUTERS = ("gate", "router")
NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # keys of config.json
TOWERS = ("vision_config", "audio_config", "speech_config")
TOWER = re.compile(r"(^|\.)(vision_tower|vision_model|visual|audio_tower|multi_modal_projector)\.")
NARROWING = ("exclude_modules", "layers_to_transform")  # keys of adapter_config.json by which peft leaves layers out
TRAIN_AGAIN = "train and save the adapter again"
MAX_SHOWN = 12  # names in an error


@dataclass(frozen=True)
class Layout:
    """A model as its files describe it, without the values of its weights."""

    source: str  # folder or address, for messages
    config: dict[str, Any]  # config.json
    shapes: dict[str, tuple[int, ...]]  # by the tensor's name

    @classmethod
    def of(cls, folder: Path | str) -> "Layout":
        """Reads the layout of a model's folder."""
        folder = Path(folder)
        shapes = {name: tensor.shape for file in read_weights(folder) for name, tensor in file.tensors.items()}
        return cls(str(folder), read_json(folder / "config.json"), shapes)

    @property
    def kind(self) -> str:
        """The type of the model, as transformers names it."""
        return str(self.config.get("model_type"))

    @property
    def has_experts(self) -> bool:
        """Tells whether its layers have experts, of which a router picks some for each token."""
        counts = [self.config.get(key) for key in NUM_EXPERTS]
        return any(isinstance(count, int) and count > 1 for count in counts) or any(map(EXPERTS.search, self.shapes))

    @property
    def is_tied(self) -> bool:
        """Tells whether the head has the weights of the embedding."""
        return HEAD not in self.shapes or self.config.get("tie_word_embeddings") is True

    @property
    def linear(self) -> list[str]:
        """Names of the linear layers inside the numbered layers, in the order of the file; experts are none."""
        matrices = [name for name, shape in self.shapes.items() if name.endswith(WEIGHT) and len(shape) == 2]
        inside = [name.removesuffix(WEIGHT) for name in matrices if LAYER.match(name)]
        return [name for name in inside if not (self.has_experts and _is_sparse(name))]

    @property
    def embedding(self) -> tuple[int, ...] | None:
        """Shape of the embedding: tokens, width."""
        return next((shape for name, shape in self.shapes.items() if is_embedding(name)), None)


@dataclass(frozen=True)
class Targets:
    """The tensors that a training changes."""

    tensors: dict[str, list[str]]  # module name for peft and unsloth, as short as it can be -> names of tensors
    note: str = ""  # what is left out that one might expect, and why

    @property
    def modules(self) -> list[str]:
        """Names for `target_modules` of peft and unsloth."""
        return list(self.tensors)

    def __str__(self) -> str:
        num_tensors = len({name for names in self.tensors.values() for name in names})
        return f"{', '.join(self.tensors)} ({num_tensors} tensors)" + (f"; {self.note}" if self.note else "")


def resolve(layout: Layout, target_modules: list[str] | str, *, setting: str) -> Targets:
    """Returns the tensors that a LoRA training with `target_modules` changes.

    Raises:
        ValueError: nothing here could train or merge that; names `setting`, its value and what the model has.
    """
    check_trainable(layout)
    if not isinstance(target_modules, str):
        return _of_list(layout, target_modules, setting)
    linear, note = layout.linear, ""
    if target_modules == "all-linear" and layout.has_experts:
        raise ValueError(
            f"{setting}: all-linear means experts too, which are fused in {_of(layout)} and cannot be merged; "
            f"set it to auto, which trains {', '.join(_short(layout, _attention(linear)))}"
        )
    if target_modules == "auto" and layout.has_experts:
        note = "attention alone: the experts are fused"
    wanted = _attention(linear) if note or target_modules == "attention" else linear
    if not wanted:
        where = "attention" if note or target_modules == "attention" else "its layers"
        raise ValueError(
            f"{setting}: {target_modules} finds no linear layer in {where} of {_of(layout)}, which has "
            f"{_listed(_leaves(linear or layout.shapes))}; give a decoder that transformers knows, or name its layers"
        )
    return Targets({module: _matched(module, wanted) for module in _short(layout, wanted)}, note)


def check_adapter(layout: Layout, settings: dict[str, Any], adapted: set[str], *, path: Path | str) -> None:
    """Checks that an adapter has matrices for the layers that its adapter_config.json names, for all and no others.

    Args:
        settings: the content of adapter_config.json, which is at `path`.
        adapted: names of the tensors that the adapter has matrices for.

    Raises:
        ValueError: it has not, or a layer of its target_modules is none that can be merged.
    """
    entries = settings.get("target_modules")
    if isinstance(entries, str):  # a regular expression, which peft and unsloth match with whole names
        entries = [name for name in layout.linear if re.fullmatch(entries, name)]
    wanted = set()
    if entries or not settings.get("modules_to_save"):
        tensors = resolve(layout, list(entries or ()), setting=f"{path}: target_modules").tensors
        wanted = {name for names in tensors.values() for name in names}
    if strange := sorted(adapted - wanted):
        raise ValueError(
            f"{path}: the adapter changes {_listed(strange)}, which its target_modules do not name: {TRAIN_AGAIN}"
        )
    missing = sorted(wanted - adapted)
    if missing and not any(settings.get(key) for key in NARROWING):
        raise ValueError(
            f"{path}: target_modules name {_listed(missing)}, for which the adapter has no matrices: {TRAIN_AGAIN}"
        )


def is_embedding(name: str) -> bool:
    """Tells whether a tensor is the embedding of the tokens, by its name."""
    return name.endswith(EMBEDDINGS)


def check_trainable(layout: Layout) -> None:
    """Refuses models that the line cannot train and merge, whatever the settings."""
    towers = [key for key in TOWERS if layout.config.get(key)] or list(filter(TOWER.search, layout.shapes))[:1]
    if towers:
        raise ValueError(
            f"base_model: {_of(layout)} has more than text ({towers[0]}); only text models can be trained: give "
            "its text-only model, saved with AutoModelForCausalLM from the text_config, or another"
        )
    if layout.config.get("is_encoder_decoder"):
        raise ValueError(f"base_model: {_of(layout)} is an encoder and decoder; give a decoder-only model")
    first = next((match[1] for match in map(LAYER.match, layout.shapes) if match), "model.layers")
    if "." not in first:
        raise ValueError(
            f"base_model: {_of(layout)} holds a model without its head (names begin with {first}.0): merged weights "
            "would not fit it; load it with AutoModelForCausalLM, and save it with save_pretrained"
        )


def _of_list(layout: Layout, entries: list[str], setting: str) -> Targets:
    linear = layout.linear
    tensors = {entry: _matched(entry, linear) for entry in entries}
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        if reason := _reason(layout, entry, tensors[entry]):
            reasons.setdefault(reason, []).append(entry)
    if not entries:
        reasons = {"names no layer": ["the list"]}
    if reasons:
        faults = "; ".join(f"{_listed(names)}: {reason}" for reason, names in reasons.items())
        usable = [name for name in linear if not _reason(layout, name, [name])]
        has = f"{_of(layout)} has {_listed(_short(layout, usable))}"
        raise ValueError(f"{setting}: {faults}. {has}; name some of these, or set it to auto")
    return Targets(tensors)


def _reason(layout: Layout, entry: str, matched: list[str]) -> str | None:
    """Says why an entry cannot be trained and merged; None if it can."""
    leaf = entry.rpartition(".")[2]
    if layout.has_experts and leaf in _sparse_leaves(layout):
        return "part of the experts or of their router, which are fused and cannot be merged"
    if matched:
        return None
    if leaf == HEAD.removesuffix(WEIGHT) or _matched(entry, filter(is_embedding, layout.shapes)):
        if layout.is_tied:
            return f"embedding and head are one tensor here (tied), {NO_ADAPTER}"
        return f"embedding or head, {NO_ADAPTER}"
    return "no linear layer has this name"


def _matched(entry: str, modules: Iterable[str]) -> list[str]:
    """Names of the tensors that peft changes for an entry: that of the module, or of all whose name ends so."""
    names = (name.removesuffix(WEIGHT) for name in modules)
    return [name + WEIGHT for name in names if name == entry or name.endswith(f".{entry}")]


def _attention(modules: list[str]) -> list[str]:
    return [name for name in modules if ATTENTION.search(name.rpartition(".")[0])]


def _short(layout: Layout, wanted: list[str]) -> list[str]:
    """Names as short as they can be that match the wanted modules and no other part of the model."""
    others = {name.removesuffix(WEIGHT) for name in layout.shapes} - set(wanted)
    endings = {".".join(name.rsplit(".", depth)[-depth:]) for name in others for depth in (1, 2)}
    shortest = []
    for name in wanted:
        candidates = (".".join(name.rsplit(".", depth)[-depth:]) for depth in (1, 2))
        shortest.append(next((candidate for candidate in candidates if candidate not in endings), name))
    return list(dict.fromkeys(shortest))


def _is_sparse(module: str) -> bool:
    return bool(EXPERTS.search(module + ".")) or module.rpartition(".")[2] in ROUTERS


def _sparse_leaves(layout: Layout) -> set[str]:
    """Last parts of the names of experts and routers: by these peft takes a module for one of them, wherever it is."""
    names = [name.removesuffix(WEIGHT) for name in layout.shapes if EXPERTS.search(name)]
    return {*_leaves(names), *ROUTERS, "gate_up_proj"}


def _leaves(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.removesuffix(WEIGHT).rpartition(".")[2] for name in names))


def _of(layout: Layout) -> str:
    return f"{layout.source} ({layout.kind})"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:MAX_SHOWN]) + (", ..." if len(names) > MAX_SHOWN else "") or "nothing"
