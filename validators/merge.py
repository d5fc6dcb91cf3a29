"""Gate check_merge: is the merged model the base with the adapter, and nothing else?

base folder, adapter folder, merged model folder, held-out rows (JSONL) -> verdict

The weights are compared tensor by tensor, byte by byte; what the model computes is compared with the adapter on the
base, both in float32 on the CPU. Which tensors may change is read from the adapter here, not taken from the code that
merged.
"""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from posttrain import config, data, kfp_io, record
from posttrain.model import TOKENIZER_FILES
from posttrain.verdict import Check, Verdict, at_least, at_most, finite, holds
from posttrain.weights import FLOAT_BYTES, Tensor, chunks, first_non_finite, read_json, read_weight_file, read_weights
from validators import checks
from validators.intervals import share_at_least

MAX_TOKENS = (
    1024  # positions compared, over all rows: seconds on a CPU, and 0.6 GB of log-probabilities at 150,000 tokens
)
MAX_ROW_TOKENS = 256  # of a row, counted from its end, where the answer stands
MERGE_AGAIN = "Merge again; if it comes back, keep both folders and report it."


def measure(base: Path, adapter: Path, model: Path, rows: list[dict]) -> tuple[dict[str, Any], list[Check]]:
    """The numbers, and a failed check for each part that could not be measured."""
    return checks.measure_each(
        {
            "weights": lambda: compare_weights(base, adapter, model),
            "files": lambda: compare_files(base, model),
            "size": lambda: compare_size(model),
            "parity": lambda: compare_outputs(base, adapter, model, rows),
        }
    )


def judge(numbers: dict[str, Any], limits: config.MergeLimits) -> list[Check]:
    """Pure: the same numbers and limits give the same checks. A missing number fails its check."""
    longer = "The adapter is empty, or too small for the base's precision: train longer or with a higher learning rate."
    other = "Merge into the base that the adapter was trained on."
    return [
        _none(numbers, "wrong_names", "tensor_names", MERGE_AGAIN),
        _none(numbers, "wrong_shapes", "tensor_shapes", MERGE_AGAIN),
        _none(numbers, "wrong_dtypes", "tensor_dtypes", MERGE_AGAIN),
        _none(numbers, "non_finite", "finite_weights", "See the training metrics for divergence and train again."),
        at_most("size_deviation", numbers.get("size_deviation"), limits.max_size_deviation, remedy=MERGE_AGAIN,
                detail=_of(numbers, "num_bytes", "implied_bytes", "bytes, configuration implies")),
        at_least("num_changed_targets", numbers.get("num_changed_targets"), 1, remedy=longer,
                 detail=_of(numbers, "num_changed_targets", "num_targets", "of")),
        _none(numbers, "unchanged_targets", "updates_applied", longer),
        _none(numbers, "changed_others", "others_untouched", MERGE_AGAIN),
        _none(numbers, "quantised", "not_quantised", "Merge into the 16-bit base."),
        _none(numbers, "changed_config", "config_unchanged", MERGE_AGAIN),
        _none(numbers, "changed_tokenizer", "tokenizer_unchanged", MERGE_AGAIN),
        _none(numbers, "changed_chat_template", "chat_template_unchanged", MERGE_AGAIN),
        _none(numbers, "changed_generation_config", "generation_config_unchanged", MERGE_AGAIN),
        _none(numbers, "changed_eos", "eos_unchanged", MERGE_AGAIN),
        at_most("merge_kl", numbers.get("merge_kl"), limits.max_merge_kl, remedy=other,
                detail="nats per token, adapter-on-base against merged"),
        share_at_least("merge_agreement", numbers.get("num_agreeing"), numbers.get("num_positions"),
                              limits.min_merge_agreement, remedy=other, detail="same most likely token"),
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
        if _is_zero((file.path, tensor)):
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


def compare_outputs(base: Path, adapter: Path, model: Path, rows: list[dict]) -> dict[str, float]:
    """KL divergence, agreement and loss on held-out rows; one model in memory at a time."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    sequences = token_sequences(data.load_tokenizer(model), rows)

    def load(path: Path):
        return AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )

    reference = log_probabilities(PeftModel.from_pretrained(load(base), adapter, torch_device="cpu"), sequences)
    merged = log_probabilities(load(model), sequences)
    following = torch.cat([torch.tensor(ids[1:]) for ids in sequences]).unsqueeze(1)
    losses = [-scores.gather(1, following).mean().item() for scores in (reference, merged)]
    num_agreeing = int((reference.argmax(1) == merged.argmax(1)).sum())
    kl = torch.nn.functional.kl_div(merged, reference, reduction="batchmean", log_target=True).item()
    return {
        "merge_kl": 0.0 if -1e-6 < kl < 0 else kl,  # rounding can put equal models a little below zero
        "num_agreeing": num_agreeing,
        "num_positions": len(following),
        "adapter_loss": losses[0],
        "merged_loss": losses[1],
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


def log_probabilities(model, sequences: list[list[int]]):
    """Log-probabilities of every next token: [positions of all sequences, vocabulary], float32."""
    import torch

    model.eval()
    with torch.no_grad():
        logits = (model(torch.tensor([ids]), use_cache=False).logits[0, :-1] for ids in sequences)
        return torch.cat([scores.float().log_softmax(1) for scores in logits])


Place = tuple[Path, Tensor]


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


def _is_zero(place: Place) -> bool:
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
    detail = "not measured" if found is None else f"{len(found)}: {', '.join(found[:3])}" if found else ""
    return holds(name, found == [], detail=detail, remedy=remedy)


def _of(numbers: dict[str, Any], part: str, whole: str, words: str) -> str:
    return f"{numbers[part]} {words} {numbers[whole]}" if part in numbers and whole in numbers else ""


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

    def work() -> Verdict:
        rows = data.read_jsonl(args.eval)
        numbers, failures = measure(Path(args.base), Path(args.adapter), Path(args.model), rows)
        scalars = {name: value for name, value in numbers.items() if not isinstance(value, list)}
        found = [*judge(numbers, step.validation), *failures]
        return Verdict(gate=args.step, subject=checks.subject(inputs), checks=found, numbers=finite(scalars))

    checks.run_gate(args, inputs=inputs, config=step, work=work)


if __name__ == "__main__":
    main()
