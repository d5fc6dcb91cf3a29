"""Gate check_merge: is the merged model the base with the adapter, and nothing else?

base folder, adapter folder, merged model folder, held-out rows (JSONL) -> verdict

The weights are compared tensor by tensor, byte by byte, and those that changed with the update as peft computes it;
what the model computes is compared with the adapter on the base, both in float32 on the CPU. Nothing is taken from the
code that merged: which tensors may change is read from the adapter here.
"""

import argparse
import re
from pathlib import Path
from typing import Any

from posttrain import config
from posttrain.rows import formats
from posttrain.step import digests, kfp_io
from posttrain.step.running import Running
from posttrain.verdict import Check, at_least, at_most, finite, holds
from posttrain.weights.folder import TOKENIZER_FILES, side_files
from posttrain.weights.tensors import (
    FLOAT_BYTES,
    INDEX,
    Place,
    first_non_finite,
    is_zero,
    pieces,
    read_json,
    read_places,
    read_weight_file,
    read_weights,
    weight_file_names,
)
from validators import checks, measuring, parity
from validators.intervals import ratio

MERGE_AGAIN = "Merge again; if it comes back, keep both folders and report it."
OTHER_BASE = "Merge into the base that the adapter was trained on."
EMPTY = "The adapter is empty, or too small for the base's precision: train longer or with a higher learning rate."


def measure(
    base: Path, adapter: Path, model: Path, rows: list[dict], *, timeouts: measuring.Timeouts
) -> measuring.Measured:
    """Files side by side, then what needs a model, of which one at a time is in memory."""
    files = measuring.side_by_side(
        {
            "weights_compared": lambda: compare_weights(base, adapter, model),
            "files_compared": lambda: compare_files(base, model),
            "size_compared": lambda: compare_size(model),
        },
        timeouts,
    )
    parts = parity.parts(base, adapter, model, rows)
    alone = {"loads_without_peft": lambda: parity.load_without_peft(model, rows)}
    broken = files.numbers.get("non_finite")
    if broken is None or broken:
        because = "the model holds NaN or infinity" if broken else "the weights could not be compared"
        return files | measuring.not_run([*parts, *alone], because)
    return files | measuring.in_order(parts, timeouts) | measuring.in_order(alone, timeouts)


def judge(numbers: dict[str, Any], limits: config.MergeLimits) -> list[Check]:
    """Pure: the same numbers and limits give the same checks. A missing number does not pass its check."""
    return [*judge_weights(numbers, limits), *judge_files(numbers), *judge_outputs(numbers, limits)]


def judge_weights(numbers: dict[str, Any], limits: config.MergeLimits) -> list[Check]:
    """Every tensor is the base's or, where it is a target, the base's with its update."""
    return [
        _none(numbers, "wrong_names", "tensor_names", MERGE_AGAIN),
        _none(numbers, "wrong_shapes", "tensor_shapes", MERGE_AGAIN),
        _none(numbers, "wrong_dtypes", "tensor_dtypes", MERGE_AGAIN),
        _none(numbers, "non_finite", "finite_weights", "See the training metrics for divergence and train again."),
        at_most("size_deviation", numbers.get("size_deviation"), limits.max_size_deviation, remedy=MERGE_AGAIN,
                detail=_of(numbers, "num_bytes", "implied_bytes", "bytes, configuration implies")),
        at_least("num_changed_targets", numbers.get("num_changed_targets"), 1, remedy=EMPTY,
                 detail=_of(numbers, "num_changed_targets", "num_targets", "of")),
        _none(numbers, "unchanged_targets", "updates_applied", EMPTY),
        _none(numbers, "wrong_updates", "updates_exact", MERGE_AGAIN),
        _none(numbers, "changed_others", "others_untouched", OTHER_BASE),
    ]  # fmt: skip


def judge_files(numbers: dict[str, Any]) -> list[Check]:
    """What stands beside the weights is the base's."""
    return [
        _none(numbers, "quantised", "not_quantised", "Merge into the 16-bit base."),
        _none(numbers, "changed_config", "config_unchanged", MERGE_AGAIN),
        _none(numbers, "changed_tokenizer", "tokenizer_unchanged", MERGE_AGAIN),
        _none(numbers, "changed_chat_template", "chat_template_unchanged", MERGE_AGAIN),
        _none(numbers, "changed_generation_config", "generation_config_unchanged", MERGE_AGAIN),
        _none(numbers, "changed_eos", "eos_unchanged", MERGE_AGAIN),
        _none(numbers, "strange_files", "no_other_files", "Leave nothing but the merged model in its folder."),
    ]


def judge_outputs(numbers: dict[str, Any], limits: config.MergeLimits) -> list[Check]:
    """Of adapter-on-base against merged, over held-out rows; and of the merged model where there is no peft."""
    lengths, sure = numbers.get("num_positions_of_rows"), {"confidence": limits.confidence}
    return [
        ratio("merge_kl", numbers.get("kl_of_rows"), lengths, "<=", limits.max_merge_kl, **sure,
              detail="nats per token, adapter-on-base against merged", remedy=OTHER_BASE),
        ratio("merge_agreement", numbers.get("num_agreeing_of_rows"), lengths, ">=", limits.min_merge_agreement, **sure,
              detail="share of positions with the same most likely token", remedy=OTHER_BASE),
        ratio("merge_loss_difference", numbers.get("loss_difference_of_rows"), lengths, "<=",
              limits.max_merge_loss_difference, **sure, detail="nats per token, either way", remedy=OTHER_BASE),
        _none(numbers, "not_loaded", "loads_whole", MERGE_AGAIN),
        holds("logits_finite", numbers.get("logits_finite"), remedy="See config.json and the norms' weights."),
    ]  # fmt: skip


def compare_weights(base: Path, adapter: Path, model: Path) -> dict[str, Any]:
    """Names, shapes, dtypes, finiteness, and which tensors changed."""
    old, new = read_places(base), read_places(model)
    moving, may_change = targets(adapter)
    head = "lm_head.weight"
    untied = head not in old and any(name == head or "embed" in name or "wte" in name for name in may_change)
    expected = old.keys() | ({head} if untied else set())
    shared = sorted(old.keys() & new.keys())
    same_form = [name for name in shared if old[name][1].num_bytes == new[name][1].num_bytes]
    changed = {name for name in same_form if _differ(old[name], new[name])} | (set(shared) - set(same_form))
    floats = [name for name, (_, tensor) in sorted(new.items()) if tensor.dtype in FLOAT_BYTES]
    return {
        "wrong_names": sorted(expected ^ new.keys()),
        "wrong_shapes": [name for name in shared if old[name][1].shape != new[name][1].shape],
        "wrong_dtypes": [name for name in shared if old[name][1].dtype != new[name][1].dtype],
        "non_finite": [name for name in floats if not _finite(new[name])],
        "num_targets": len(may_change),
        "num_changed_targets": len(changed & may_change),
        "unchanged_targets": sorted(moving - changed),
        "changed_others": sorted(changed - may_change),
    }


def targets(adapter: Path) -> tuple[set[str], set[str]]:
    """Names of the tensors that the adapter must change (its update is not zero), and of all that it may change.

    Whole tensors may change only if `modules_to_save` says that they were trained.
    """
    file = read_weight_file(adapter / "adapter_model.safetensors")
    saved = read_json(adapter / "adapter_config.json").get("modules_to_save") or []
    zero, low_rank, whole = set(), set(), set()
    for key, tensor in file.tensors.items():
        name = key.removeprefix("base_model.model.")
        target = re.sub(r"\.lora_[AB]\.weight$", ".weight", name)
        if target != name:
            low_rank.add(target)
        elif any(f".{module}." in f".{name}" for module in saved):
            whole.add(target)
        if is_zero((file.path, tensor)):
            zero.add(target)
    return low_rank - zero, low_rank | whole


def compare_files(base: Path, model: Path) -> dict[str, list[str]]:
    """Names of files and keys that are not as in the base."""
    ours, theirs = read_json(model / "config.json"), read_json(base / "config.json")
    free = {"tie_word_embeddings", "quantization_config"}  # the first changes where embedding or head is trained whole
    keys = sorted(key for key in ours.keys() | theirs.keys() if key not in free and ours.get(key) != theirs.get(key))
    names = {name for folder in (base, model) for pattern in TOKENIZER_FILES for name in _matches(folder, pattern)}
    templates = {name for name in names if "chat_template" in name}
    return {
        "changed_config": keys,
        "quantised": ["quantization_config"] if ours.get("quantization_config") else [],
        "changed_tokenizer": _changed(base, model, names - templates),
        "changed_chat_template": _changed(base, model, templates),
        "changed_generation_config": _changed(base, model, {"generation_config.json"}),
        "changed_eos": [f"{place} {old} -> {new}" for place, old, new in _ends(base, model) if old != new],
        "strange_files": strange_files(base, model),
    }


def strange_files(base: Path, model: Path) -> list[str]:
    """What a loader could take for part of the model: files neither weights nor the base's, or not as in the base."""
    theirs, ours = set(side_files(base)), {file.relative_to(model).as_posix() for file in digests.files_of(model)}
    named = {INDEX} if (model / INDEX).is_file() else set()
    strangers = ours - theirs - named.union(weight_file_names(model))
    compared = {"config.json", "generation_config.json"}.union(*(_matches(base, name) for name in TOKENIZER_FILES))
    return sorted(strangers.union(_changed(base, model, theirs - compared)))


def compare_size(model: Path) -> dict[str, float]:
    """Bytes of the weights against those of an empty model of this configuration and dtype."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(model, local_files_only=True)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(settings, dtype=settings.dtype or torch.float32)
    empty.tie_weights()
    stored = empty.state_dict().keys()
    tensors = [*empty.parameters(), *(buffer for name, buffer in empty.named_buffers() if name in stored)]
    implied = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    num_bytes = sum(file.num_bytes for file in read_weights(model))
    return {"num_bytes": num_bytes, "implied_bytes": implied, "size_deviation": abs(num_bytes - implied) / implied}


def _differ(old: Place, new: Place) -> bool:
    return any(ours != theirs for ours, theirs in zip(pieces(old), pieces(new), strict=True))


def _finite(place: Place) -> bool:
    path, tensor = place
    with open(path, "rb") as file:
        return first_non_finite(file, tensor) is None


def _matches(folder: Path, pattern: str) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.glob(pattern)]


def _changed(base: Path, model: Path, names: set[str]) -> list[str]:
    return sorted(name for name in names if _digest(base / name) != _digest(model / name))


def _digest(path: Path) -> str | None:
    return digests.digest(path) if path.is_file() else None


def _ends(base: Path, model: Path) -> list[tuple[str, Any, Any]]:
    """Where the end of an answer is defined: place, the base's value, the model's value."""
    places = (
        ("config.json", "eos_token_id"),
        ("generation_config.json", "eos_token_id"),
        ("tokenizer_config.json", "eos_token"),
    )
    return [(f"{name} {key}", _value(base / name, key), _value(model / name, key)) for name, key in places]


def _value(path: Path, key: str) -> Any:
    return read_json(path).get(key) if path.is_file() else None


def _none(numbers: dict[str, Any], key: str, name: str, remedy: str) -> Check:
    """Passes if the list of what is wrong was made and is empty."""
    found = numbers.get(key)
    detail = f"{len(found)}: {', '.join(found[:3])}" if found else ""
    return holds(name, None if found is None else not found, detail=detail, remedy=remedy)


def _of(numbers: dict[str, Any], part: str, whole: str, words: str) -> str:
    return f"{numbers[part]} {words} {numbers[whole]}" if part in numbers and whole in numbers else ""


def numbers_of(numbers: dict[str, Any]) -> dict[str, float]:
    """What the verdict shows beside its checks."""
    return finite({name: value for name, value in numbers.items() if type(value) in (int, float)})


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__doc__)
    parser.add_argument("--base", required=True, help="folder of the model that was merged into")
    parser.add_argument("--adapter", required=True, help="folder of the adapter")
    parser.add_argument("--model", required=True, help="folder of the merged model")
    parser.add_argument("--eval", required=True, help="held-out rows, JSONL")
    checks.add_gate_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    step = config.parse_step(config.CheckMergeStep, args.config)
    inputs = {"base": args.base, "adapter": args.adapter, "model": args.model, "eval": args.eval}

    def work(running: Running) -> checks.GateVerdict:
        rows, limits = formats.read_jsonl(args.eval), step.validation
        folders = (Path(args.base), Path(args.adapter), Path(args.model))
        measured = measure(*folders, rows, timeouts=checks.timeouts(limits))
        return checks.GateVerdict(
            gate=running.step,
            subject=running.inputs,
            checks=(*judge(measured.numbers, limits), *measured.failures),
            numbers=numbers_of(measured.numbers),
            confidence=step.validation.confidence,
            seconds=measured.seconds,
        )

    checks.run_gate(args, inputs=inputs, config=step, work=work)


if __name__ == "__main__":
    main()
