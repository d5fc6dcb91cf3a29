"""Reads a LoRA adapter, and plans how it is merged into its base.

adapter folder, base folder and its weights -> Plan: the update of each tensor

Names, shapes and values are checked, and whatever cannot be merged is refused by name.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from posttrain.weights.targets import HEAD, NO_ADAPTER, Layout, check_adapter, is_embedding
from posttrain.weights.tensors import FLOAT_BYTES, Tensor, WeightFile, first_non_finite, read_json, read_weight_file

PREFIX = "base_model.model."
OWN_BASE = "merge into the model that the adapter was trained on"

# Keys of adapter_config.json that the merge reads.
READ = {
    "alpha_pattern",
    "bias",
    "fan_in_fan_out",
    "init_lora_weights",
    "lora_alpha",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "use_rslora",
}
# Keys of adapter_config.json that do not change what the trained weights mean.
WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}
# Other initialisations change the base weights too, so the adapter does not fit the base as it is on disk.
NEUTRAL_INITS = (True, False, "gaussian", "orthogonal")
REMEDIES = {
    "use_dora": "train with use_dora=False",
    "target_parameters": "train with target_modules instead",
    "trainable_token_indices": "train linear layers alone, by target_modules",
    "lora_bias": "train with lora_bias=False",
    "layer_replication": "train on the model as it is",
    "ensure_weight_tying": "train with ensure_weight_tying=False",
}


@dataclass(frozen=True, slots=True)
class LowRank:
    """The update scale * left @ right of a weight of shape [rows, columns]."""

    left: Tensor  # B [rows, r]; if transposed, A [r, rows]
    right: Tensor  # A [r, columns]; if transposed, B [columns, r]
    scale: float
    transposed: bool  # the base stores its weight as [in, out] (fan_in_fan_out)


@dataclass(frozen=True, slots=True)
class Whole:
    """A tensor of the adapter that replaces one of the base (modules_to_save)."""

    tensor: Tensor


@dataclass(frozen=True, slots=True)
class Addition:
    """A tensor of the result that the base lacks: the head of a tied base, once it differs from the embedding."""

    name: str
    like: Tensor  # has its dtype and shape, and also its bytes unless there is an `update`
    update: Whole | None


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a merge changes."""

    updates: dict[str, LowRank | Whole]  # by the base's tensor name
    addition: Addition | None


def read_adapter(adapter: Path) -> WeightFile:
    """Reads the header of the adapter's weights, which must be safetensors."""
    path = adapter / "adapter_model.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: is missing; save the adapter with save_pretrained (safetensors)")
    return read_weight_file(path)


def plan_merge(base: Path, files: list[WeightFile], adapter: Path, source: WeightFile) -> Plan:
    """Plans the update of each tensor of the base, and checks every name, shape and value of the adapter."""
    settings = read_adapter_config(adapter / "adapter_config.json")
    pairs, wholes = _group(source)
    tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}
    tied = HEAD not in tensors
    addition = _untie(base, source.path, tensors, wholes) if tied else None
    if addition and addition.update:
        del wholes[HEAD]
    updates: dict[str, LowRank | Whole] = {name: Whole(tensor) for name, tensor in wholes.items()}
    for module, pair in pairs.items():
        updates[f"{module}.weight"] = _low_rank(source.path, module, pair, settings)
    _check_updates(base, source.path, tensors, updates)
    layout = Layout(str(base), read_json(base / "config.json"), {name: one.shape for name, one in tensors.items()})
    check_adapter(layout, settings, {f"{module}.weight" for module in pairs}, path=adapter / "adapter_config.json")
    _check_modules_to_save(source.path, settings, wholes.keys() | ({HEAD} if addition else set()))
    _check_finite(source)
    return Plan(updates, addition)


def read_adapter_config(path: Path) -> dict:
    """Reads adapter_config.json of a plain LoRA, and refuses by name whatever the merge would get wrong."""
    settings = read_json(path)
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type = {settings.get('peft_type')!r} cannot be merged; train a LoRA adapter")
    if settings.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias = {settings['bias']!r} cannot be merged; train with bias='none'")
    if settings.get("init_lora_weights", True) not in NEUTRAL_INITS:
        value = settings["init_lora_weights"]
        raise ValueError(f"{path}: init_lora_weights = {value!r} changes the base too; train with True")
    for key, value in settings.items():
        if value and key not in READ | WITHOUT_EFFECT:
            remedy = REMEDIES.get(key, "train a plain LoRA adapter without it")
            raise ValueError(f"{path}: {key} = {json.dumps(value)[:80]} cannot be merged; {remedy}")
    _check_number(path, settings, "r")
    _check_number(path, settings, "lora_alpha")
    return settings


def _check_number(path: Path, settings: dict, key: str) -> None:
    value = settings.get(key)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ValueError(f"{path}: {key} = {value!r} is not a positive number; save the adapter again")


def _group(source: WeightFile) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Groups the adapter's tensors into LoRA pairs by module name, and whole tensors by the base's tensor name."""
    pairs: dict[str, dict[str, Tensor]] = {}
    wholes = {}
    for key, tensor in source.tensors.items():
        name = key.removeprefix(PREFIX)
        if name == key or name.endswith((".base_layer.weight", ".base_layer.bias")) or tensor.dtype not in FLOAT_BYTES:
            raise ValueError(f"{source.path}: {key} ({tensor.dtype}) cannot be merged; {_key_remedy(name)}")
        if match := re.fullmatch(r"(.+)\.lora_([AB])\.weight", name):
            pairs.setdefault(match[1], {})[match[2]] = tensor
        elif ".lora_" in name:
            raise ValueError(f"{source.path}: {key} cannot be merged; {_key_remedy(name)}")
        else:
            wholes[name] = tensor
    if not pairs and not wholes:
        raise ValueError(f"{source.path}: holds no tensors; train and save the adapter again")
    return pairs, wholes


def _key_remedy(name: str) -> str:
    if "lora_embedding" in name or name.endswith(".base_layer.weight"):
        return f"it is embedding or head, {NO_ADAPTER}: leave them out of target_modules"
    return "train a plain LoRA adapter and save it with save_pretrained"


def _low_rank(path: Path, module: str, pair: dict[str, Tensor], settings: dict) -> LowRank:
    if pair.keys() != {"A", "B"}:
        raise ValueError(f"{path}: {module} has only lora_{min(pair)}; save the adapter again")
    a, b = pair["A"], pair["B"]
    rank = _of_pattern(path, settings, "rank_pattern", module, settings["r"])
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
        shapes = f"{module} has lora_A {list(a.shape)} and lora_B {list(b.shape)}"
        raise ValueError(f"{path}: {shapes}, not the rank {rank} of adapter_config.json; save the adapter again")
    alpha = _of_pattern(path, settings, "alpha_pattern", module, settings["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    transposed = bool(settings.get("fan_in_fan_out"))
    return LowRank(a, b, scale, True) if transposed else LowRank(b, a, scale, False)


def _of_pattern(path: Path, settings: dict, key: str, module: str, default: float) -> float:
    """Returns the first value whose pattern matches the end of the module's name, as peft's get_pattern_key does."""
    for pattern, value in (settings.get(key) or {}).items():
        try:
            matched = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise ValueError(f"{path}: {key} {pattern!r} is not a regular expression ({error}); correct it") from None
        if matched:
            _check_number(path, {f"{key} {pattern}": value}, f"{key} {pattern}")
            return value
    return default


def _untie(base: Path, path: Path, tensors: dict[str, Tensor], wholes: dict[str, Tensor]) -> Addition | None:
    """Adds a separate head to a tied base of which the adapter replaces embedding or head, as peft does."""
    embedding = next((tensor for name, tensor in tensors.items() if is_embedding(name)), None)
    if embedding is None or not (HEAD in wholes or embedding.name in wholes):
        return None
    head = wholes.get(HEAD)
    if head and head.shape != embedding.shape:
        shapes = f"{HEAD} is {list(head.shape)} in the adapter, {list(embedding.shape)} in the base {base}"
        raise ValueError(f"{path}: {shapes}; {OWN_BASE}")
    return Addition(HEAD, embedding, Whole(head) if head else None)


def _check_updates(base: Path, path: Path, tensors: dict[str, Tensor], updates: dict[str, LowRank | Whole]) -> None:
    for name, update in updates.items():
        if name not in tensors:
            raise ValueError(f"{path}: {name} is not in the base {base}; {OWN_BASE}")
        if isinstance(update, Whole):
            shape = update.tensor.shape
        elif update.transposed:
            shape = (update.left.shape[1], update.right.shape[0])
        else:
            shape = (update.left.shape[0], update.right.shape[1])
        if shape != tensors[name].shape:
            shapes = f"{name} is {list(shape)} in the adapter, {list(tensors[name].shape)} in the base {base}"
            raise ValueError(f"{path}: {shapes}; {OWN_BASE}")


def _check_modules_to_save(path: Path, settings: dict, replaced: set[str]) -> None:
    for module in settings.get("modules_to_save") or []:
        if not any(f".{module}." in f".{name}" for name in replaced):
            raise ValueError(f"{path}: modules_to_save names {module}, which the file lacks; save the adapter again")


def _check_finite(source: WeightFile) -> None:
    with open(source.path, "rb") as file:
        for tensor in source.tensors.values():
            at = first_non_finite(file, tensor)
            if at is not None:
                raise ValueError(f"{source.path}: {tensor.name} is NaN or infinite at element {at}; train again")
