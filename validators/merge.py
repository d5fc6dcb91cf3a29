"""Gate check_merge: is the merged model the base with the adapter, and nothing else?

base folder, adapter folder, merged model folder, held-out rows (JSONL) -> verdict

The weights are compared tensor by tensor, byte by byte, and those that changed with the update as peft computes it;
what the model computes is compared with the adapter on the base, both in float32 on the CPU. Nothing is taken from the
code that merged: which tensors may change is read from the adapter here.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from posttrain import config, data, kfp_io, record
from posttrain.model import TOKENIZER_FILES
from posttrain.verdict import Check, at_least, at_most, finite, holds
from posttrain.weights import FLOAT_BYTES, Tensor, chunks, first_non_finite, read_json, read_weight_file, read_weights
from validators import checks, measuring
from validators.intervals import ratio

# Positions compared, over all rows: seconds on a CPU, and 1.2 GB of log-probabilities at 150,000 tokens.
MAX_TOKENS = 2048
MAX_ROW_TOKENS = 256  # of a row, counted from its end, where the answer stands
ROUNDING = {"BF16": 2**-7, "F16": 2**-10, "F32": 2**-20}  # relative; twice what one rounding can do, or more
MERGE_AGAIN = "Merge again; if it comes back, keep both folders and report it."
OTHER_BASE = "Merge into the base that the adapter was trained on."
EMPTY = "The adapter is empty, or too small for the base's precision: train longer or with a higher learning rate."

Place = tuple[Path, Tensor]  # of a tensor: its file, and where it lies there


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
    parts = parity_parts(base, adapter, model, rows)
    alone = {"loads_without_peft": lambda: load_without_peft(model, rows)}
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
    old, new = _tensors(base), _tensors(model)
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
    """Names of the tensors that the adapter must change (its update is not zero), and of all that it may change."""
    file = read_weight_file(adapter / "adapter_model.safetensors")
    zero, low_rank, whole = set(), set(), set()
    for key, tensor in file.tensors.items():
        name = key.removeprefix("base_model.model.")
        target = re.sub(r"\.lora_[AB]\.weight$", ".weight", name)
        (whole if target == name else low_rank).add(target)
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
    }


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


def parity_parts(
    base: Path, adapter: Path, model: Path, rows: list[dict]
) -> dict[str, Callable[[], dict[str, Any] | None]]:
    """What is measured in one process, in this order; each part leaves there what the next ones need."""
    held = {}

    def adapter_loads():
        held["rows"] = token_sequences(data.load_tokenizer(base), rows)
        held["adapted"] = load_adapted(base, adapter)

    def adapter_answers():
        held["reference"] = list(log_probabilities(held.pop("adapted"), held["rows"]))

    def merged_answers():
        return compare_outputs(held["reference"], log_probabilities(load(model), held["rows"]), held["rows"])

    return {
        "adapter_loads": adapter_loads,
        "updates_compared": lambda: {"wrong_updates": compare_updates(held["adapted"], model)},
        "adapter_measured": adapter_answers,
        "merged_measured": merged_answers,
    }


def load(path: Path, *, dtype: str = "float32", **options) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the log is read line by line
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, local_files_only=True, use_safetensors=True, **options
    )


def load_adapted(base: Path, adapter: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(load(base), adapter, local_files_only=True, torch_device="cpu")


def compare_updates(adapted: Any, model: Path) -> list[str]:
    """Names of tensors that are not the base's plus the update, as peft computes it, up to rounding.

    This alone sees that two targets of one shape have been exchanged.
    """
    places, wrong = _tensors(model), []
    for module_name, module in adapted.get_base_model().named_modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        name = f"{module_name}.weight"
        expected = module.get_base_layer().weight.detach() + module.get_delta_weight("default").detach()
        if name not in places or not _is_rounded(places[name], expected):
            wrong.append(name)
    return sorted(wrong)


def _is_rounded(place: Place, expected: Any) -> bool:
    """Whether the stored tensor is this one in its own dtype."""
    from safetensors import safe_open

    path, tensor = place
    with safe_open(path, framework="pt") as file:
        found = file.get_tensor(tensor.name).float()
    if found.shape != expected.shape:
        return False
    allowed = ROUNDING[tensor.dtype] * expected.abs() + 1e-6 * expected.abs().max()
    return bool(((found - expected).abs() <= allowed).all())


def compare_outputs(reference: Iterable, merged: Iterable, sequences: list[list[int]]) -> dict[str, Any]:
    """KL divergence in nats, agreement and loss of two models' log-probabilities, row by row."""
    import torch

    kl, agreeing, losses = [], [], []
    for theirs, ours, ids in zip(reference, merged, sequences, strict=True):
        following = torch.tensor(ids[1:]).unsqueeze(1)
        kl.append((theirs.exp() * (theirs - ours)).sum().item())
        agreeing.append(int((theirs.argmax(1) == ours.argmax(1)).sum()))
        losses.append([-scores.gather(1, following).sum().item() for scores in (theirs, ours)])
    lengths = [len(ids) - 1 for ids in sequences]
    return {
        "kl_of_rows": kl,
        "num_agreeing_of_rows": agreeing,
        "loss_difference_of_rows": [abs(after - before) for before, after in losses],
        "num_positions_of_rows": lengths,
        "num_positions": sum(lengths),
        "adapter_loss": sum(before for before, _ in losses) / sum(lengths),
        "merged_loss": sum(after for _, after in losses) / sum(lengths),
    }


def load_without_peft(model: Path, rows: list[dict]) -> dict[str, Any]:
    """Loads the model as whoever serves it does, in a process that cannot import peft from here on."""
    for name in ["peft", *(name for name in sys.modules if name.startswith("peft."))]:
        sys.modules[name] = None  # its import raises ImportError
    import torch

    found, loading = load(model, dtype="auto", output_loading_info=True)
    ids = token_sequences(data.load_tokenizer(model), rows)[0]
    with torch.inference_mode():
        logits = found.eval()(torch.tensor([ids]), use_cache=False).logits
    return {
        "not_loaded": sorted(str(name) for kind in ("missing_keys", "mismatched_keys") for name in loading[kind]),
        "logits_finite": bool(logits.isfinite().all()),
    }


def token_sequences(tokenizer, rows: list[dict]) -> list[list[int]]:
    """The ends of the first rows, up to `MAX_TOKENS` in all."""
    sequences: list[list[int]] = []
    for row in rows:
        ids = data.render(tokenizer, row["prompt"], row.get("completion") or row["chosen"])[-MAX_ROW_TOKENS:]
        if sequences and sum(map(len, sequences)) + len(ids) > MAX_TOKENS:
            break
        sequences.append(ids)
    if not sequences:
        raise ValueError("no held-out rows to compare the models on; raise data.eval_fraction")
    return sequences


def log_probabilities(model, sequences: list[list[int]]) -> Iterator[Any]:
    """Of each sequence the log-probabilities of every next token: [positions, vocabulary], float32."""
    import torch

    model.eval()
    for ids in sequences:
        with torch.inference_mode():
            yield model(torch.tensor([ids]), use_cache=False).logits[0, :-1].float().log_softmax(1)


def _tensors(folder: Path) -> dict[str, Place]:
    return {name: (file.path, tensor) for file in read_weights(folder) for name, tensor in file.tensors.items()}


def _pieces(place: Place) -> Iterable[bytes]:
    path, tensor = place
    with open(path, "rb") as file:
        file.seek(tensor.start)
        for _, length in chunks(tensor.num_bytes):
            yield file.read(length)


def _differ(old: Place, new: Place) -> bool:
    return any(ours != theirs for ours, theirs in zip(_pieces(old), _pieces(new), strict=True))


def _finite(place: Place) -> bool:
    path, tensor = place
    with open(path, "rb") as file:
        return first_non_finite(file, tensor) is None


def is_zero(place: Place) -> bool:
    """Whether every element is 0 or -0."""
    import numpy as np

    width = FLOAT_BYTES[place[1].dtype]
    kind = {2: np.uint16, 4: np.uint32}[width]
    magnitude = kind((1 << (8 * width - 1)) - 1)  # all bits but the sign's
    return not any((np.frombuffer(piece, kind) & magnitude).any() for piece in _pieces(place))


def _matches(folder: Path, pattern: str) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.glob(pattern)]


def _changed(base: Path, model: Path, names: set[str]) -> list[str]:
    return sorted(name for name in names if _digest(base / name) != _digest(model / name))


def _digest(path: Path) -> str | None:
    return record.digest(path) if path.is_file() else None


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

    def work() -> checks.GateVerdict:
        rows, limits = data.read_jsonl(args.eval), step.validation
        folders = (Path(args.base), Path(args.adapter), Path(args.model))
        measured = measure(*folders, rows, timeouts=checks.timeouts(limits))
        return checks.GateVerdict(
            gate=args.step,
            subject=checks.subject(inputs),
            checks=(*judge(measured.numbers, limits), *measured.failures),
            numbers=numbers_of(measured.numbers),
            confidence=step.validation.confidence,
            seconds=measured.seconds,
        )

    checks.run_gate(args, inputs=inputs, config=step, work=work)


if __name__ == "__main__":
    main()
