"""Gate check_merge: is the merged model the base with the adapter, and nothing else?

base folder, adapter folder, merged model folder, held-out rows (JSONL) -> verdict

Weights are compared tensor by tensor, byte by byte, and changed tensors with the update as peft computes it. The merged
model's outputs are compared with those of the adapter on the base, both in float32 on the CPU. None of the merge's own
code is used: which tensors may change is read from the adapter here, and must be those that the adapter's own
target_modules mean on this base, by the function that preflight and training ask, too.
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import config
from posttrain.rows import formats
from posttrain.step import digests, kfp_io
from posttrain.step.running import Running
from posttrain.verdict import Check, at_least, at_most, finite, holds, none_wrong
from posttrain.weights.folder import TOKENIZER_FILES, side_files
from posttrain.weights.targets import HEAD, Layout, check_adapter, is_embedding
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
    weight_file_names,
)
from validators import checks, measuring, parity
from validators.intervals import ratio

MERGE_AGAIN = "Merge again. If it happens again, keep both folders and report it."
DIVERGED = "Look for divergence in the training's metrics, and train again with a lower learning_rate."
OTHER_BASE = "Merge into the base that the adapter was trained on."
EMPTY = "The adapter is empty, or too small for the base's precision: raise epochs or learning_rate of its training."


Names = list[str] | None  # of what is wrong; None: could not be measured
TIES = "tie_word_embeddings"


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Numbers that judge() needs; None where one could not be measured."""

    wrong_names: Names = None  # tensors that only one of base and model has
    wrong_shapes: Names = None
    wrong_dtypes: Names = None
    non_finite: Names = None  # tensors with NaN or infinity
    num_targets: int | None = None  # tensors that the adapter may change
    num_changed_targets: int | None = None
    unchanged_targets: Names = None  # though their update is not zero
    wrong_updates: Names = None  # tensors that are not the base's plus the update
    changed_others: Names = None  # tensors that are no targets
    quantised: Names = None
    changed_config: Names = None  # keys
    changed_tokenizer: Names = None  # files
    changed_chat_template: Names = None
    changed_generation_config: Names = None
    changed_eos: Names = None
    strange_files: Names = None
    num_bytes: int | None = None  # of the weights
    base_bytes: int | None = None  # of the base's weights, and of a head that the merge had to add
    size_deviation: float | None = None  # share of base_bytes
    kl_of_rows: list[float] | None = None  # nats, sum over the positions of each row
    num_agreeing_of_rows: list[int] | None = None
    loss_difference_of_rows: list[float] | None = None  # nats, sum over the answer of each row
    num_positions_of_rows: list[int] | None = None
    num_positions: int | None = None
    num_answer_tokens_of_rows: list[int] | None = None
    adapter_loss: float | None = None  # nats per token of the answers
    merged_loss: float | None = None
    not_loaded: Names = None  # parameters that loading drew anew
    logits_finite: bool | None = None


def measure(
    base: Path, adapter: Path, model: Path, rows: list[dict], *, timeouts: measuring.Timeouts
) -> measuring.Measured:
    """Compares files side by side, then measures what needs a model, with one model in memory at a time."""
    files = measuring.side_by_side(
        {
            "weights_compared": lambda: compare_weights(base, adapter, model),
            "files_compared": lambda: compare_files(base, model),
            "size_compared": lambda: compare_size(base, model),
        },
        timeouts,
    )
    parts = parity.Measurer(base, adapter, model, rows).parts()
    alone = {"loads_without_peft": lambda: parity.load_without_peft(model, rows)}
    broken = files.numbers.get("non_finite")
    if broken is None or broken:
        because = "the model has NaN or infinity in its weights" if broken else "the weights could not be compared"
        return files | measuring.not_run([*parts, *alone], because)
    return files | measuring.in_order(parts, timeouts) | measuring.in_order(alone, timeouts)


def judge(numbers: Numbers, limits: config.MergeLimits) -> list[Check]:
    """Pure: the same numbers and limits give the same checks. A missing number does not pass its check."""
    return [*judge_weights(numbers, limits), *judge_files(numbers), *judge_outputs(numbers, limits)]


def judge_weights(numbers: Numbers, limits: config.MergeLimits) -> list[Check]:
    """Every tensor is the base's or, where it is a target, the base's with its update."""
    return [
        none_wrong("tensor_names", numbers.wrong_names, MERGE_AGAIN),
        none_wrong("tensor_shapes", numbers.wrong_shapes, MERGE_AGAIN),
        none_wrong("tensor_dtypes", numbers.wrong_dtypes, MERGE_AGAIN),
        none_wrong("finite_weights", numbers.non_finite, DIVERGED),
        at_most(
            "size_deviation",
            numbers.size_deviation,
            limits.max_size_deviation,
            detail=_pair(numbers.num_bytes, "bytes, the base has", numbers.base_bytes),
            remedy=MERGE_AGAIN,
        ),
        at_least(
            "num_changed_targets",
            numbers.num_changed_targets,
            1,
            detail=_pair(numbers.num_changed_targets, "of", numbers.num_targets),
            remedy=EMPTY,
        ),
        none_wrong("updates_applied", numbers.unchanged_targets, EMPTY),
        none_wrong("updates_exact", numbers.wrong_updates, MERGE_AGAIN),
        none_wrong("others_untouched", numbers.changed_others, OTHER_BASE),
    ]


def judge_files(numbers: Numbers) -> list[Check]:
    """Checks that the files beside the weights are the base's."""
    return [
        none_wrong("not_quantised", numbers.quantised, "Merge into the 16-bit base."),
        none_wrong("config_unchanged", numbers.changed_config, MERGE_AGAIN),
        none_wrong("tokenizer_unchanged", numbers.changed_tokenizer, MERGE_AGAIN),
        none_wrong("chat_template_unchanged", numbers.changed_chat_template, MERGE_AGAIN),
        none_wrong("generation_config_unchanged", numbers.changed_generation_config, MERGE_AGAIN),
        none_wrong("eos_unchanged", numbers.changed_eos, MERGE_AGAIN),
        none_wrong("no_other_files", numbers.strange_files, "Leave nothing but the merged model in its folder."),
    ]


def judge_outputs(numbers: Numbers, limits: config.MergeLimits) -> list[Check]:
    """Compares adapter-on-base with merged over held-out rows, and judges the merged model loaded without peft."""
    lengths, words = numbers.num_positions_of_rows, {"confidence": limits.confidence, "remedy": OTHER_BASE}
    return [
        ratio(
            "merge_kl",
            numbers.kl_of_rows,
            lengths,
            "<=",
            limits.max_merge_kl,
            detail="nats per token, adapter-on-base against merged",
            **words,
        ),
        ratio(
            "merge_agreement",
            numbers.num_agreeing_of_rows,
            lengths,
            ">=",
            limits.min_merge_agreement,
            detail="share of positions with the same most likely token",
            **words,
        ),
        ratio(
            "merge_loss_difference",
            numbers.loss_difference_of_rows,
            numbers.num_answer_tokens_of_rows,
            "<=",
            limits.max_merge_loss_difference,
            detail="nats per token of the answers, either way",
            **words,
        ),
        none_wrong("loads_whole", numbers.not_loaded, MERGE_AGAIN),
        holds("logits_finite", numbers.logits_finite, remedy="Look at config.json and at the weights of the norms."),
    ]


def compare_weights(base: Path, adapter: Path, model: Path) -> dict[str, Any]:
    """Names, shapes, dtypes, finiteness, and which tensors changed."""
    old, new = read_places(base), read_places(model)
    moving, may_change = targets(base, adapter)
    untied = HEAD not in old and any(name == HEAD or is_embedding(name) for name in may_change)
    expected = old.keys() | ({HEAD} if untied else set())
    shared = sorted(old.keys() & new.keys())
    changed = {name for name in shared if _differ(old[name], new[name])}
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


def targets(base: Path, adapter: Path) -> tuple[set[str], set[str]]:
    """Names of the tensors that the adapter must change (their update is not zero), and of all that it may change.

    Whole tensors may change only if `modules_to_save` names them.

    Raises:
        ValueError: the adapter is not on the layers of the base that its own configuration names.
    """
    file = read_weight_file(adapter / "adapter_model.safetensors")
    settings = read_json(adapter / "adapter_config.json")
    saved = settings.get("modules_to_save") or []
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
    check_adapter(Layout.of(base), settings, low_rank, path=adapter / "adapter_config.json")
    return low_rank - zero, low_rank | whole


def compare_files(base: Path, model: Path) -> dict[str, list[str]]:
    """Names of files and keys that differ from the base's."""
    ours, theirs = read_json(model / "config.json"), read_json(base / "config.json")
    # Ties are undone where embedding or head is trained whole; quantisation has a check of its own.
    free = {"quantization_config"} | ({TIES} if _is_untied(ours, theirs, model) else set())
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


def _is_untied(ours: dict, theirs: dict, model: Path) -> bool:
    """Tells whether embedding and head no longer share weights, and the model has a head of its own to show for it."""
    has_head = any(name.endswith(HEAD) for name in read_places(model))
    return theirs.get(TIES) is not False and ours.get(TIES) is False and has_head


def strange_files(base: Path, model: Path) -> list[str]:
    """Files that a loader could take for part of the model: neither weights nor the base's, or not as in the base."""
    theirs, ours = set(side_files(base)), {file.relative_to(model).as_posix() for file in digests.files_of(model)}
    named = {INDEX} if (model / INDEX).is_file() else set()
    strangers = ours - theirs - named.union(weight_file_names(model))
    compared = {"config.json", "generation_config.json"}.union(*(_matches(base, name) for name in TOKENIZER_FILES))
    return sorted(strangers.union(_changed(base, model, theirs - compared)))


def compare_size(base: Path, model: Path) -> dict[str, float]:
    """Compares the bytes of the weights with those of the base, which may hold more than its configuration implies.

    A tied base has no head of its own; where the adapter unties them the model has one, as large as the embedding.
    """
    old, new = read_places(base), read_places(model)
    added = [new[name][1].num_bytes for name in (HEAD,) if name in new and name not in old]
    expected = sum(tensor.num_bytes for _, tensor in old.values()) + sum(added)
    num_bytes = sum(tensor.num_bytes for _, tensor in new.values())
    return {"num_bytes": num_bytes, "base_bytes": expected, "size_deviation": abs(num_bytes - expected) / expected}


def _differ(old: Place, new: Place) -> bool:
    if old[1].num_bytes != new[1].num_bytes:
        return True
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
    """The places that define the end of an answer: place, the base's value, the model's value."""
    places = (
        ("config.json", "eos_token_id"),
        ("generation_config.json", "eos_token_id"),
        ("tokenizer_config.json", "eos_token"),
    )
    return [(f"{name} {key}", _value(base / name, key), _value(model / name, key)) for name, key in places]


def _value(path: Path, key: str) -> Any:
    return read_json(path).get(key) if path.is_file() else None


def _pair(part: float | None, words: str, whole: float | None) -> str:
    return "" if part is None or whole is None else f"{part} {words} {whole}"


def numbers_of(numbers: Numbers) -> dict[str, float]:
    """Numbers that the verdict shows beside its checks."""
    return finite({name: value for name, value in vars(numbers).items() if type(value) in (int, float)})


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--base", required=True, help="folder of the model that the adapter was merged into")
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
        numbers = measured.read(Numbers)
        return checks.GateVerdict(
            gate=running.step,
            subject=running.inputs,
            checks=(*judge(numbers, limits), *measured.failures),
            numbers=numbers_of(numbers),
            confidence=limits.confidence,
            seconds=measured.seconds,
        )

    checks.run_gate(args, inputs=inputs, config=step, work=work)


if __name__ == "__main__":
    main()
