"""Gate check_sft: is the adapter whole, is it better than its base on held-out rows, does it answer in form?

base and adapter folder, metrics of the training, held-out SFT rows -> verdict

    python -m validators.sft --step check_sft --storage-root DIR --base DIR --adapter DIR --training metrics.json
        --eval eval.jsonl --verdict verdict.json --report report.html --metrics numbers.json --passed passed
"""

import argparse
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from posttrain import config, inference, kfp_io
from posttrain.data import read_jsonl
from posttrain.verdict import Check, above, at_most, below, finite
from validators import answers, checks
from validators.answers import JudgedAnswer
from validators.intervals import ratio_interval

LORA_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

Logprobs = list[tuple[float, int]]  # of each row's answer: sum in nats, number of tokens


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a judgement needs. None: could not be measured."""

    non_finite_tensors: list[str] | None = None
    missing_targets: list[str] | None = None  # modules that were to be trained and are not in the adapter
    zero_targets: list[str] | None = None  # modules whose B is still zero
    base_logprobs: Logprobs | None = None
    logprobs: Logprobs | None = None
    answers: list[JudgedAnswer] | None = None
    num_rows_too_long: int | None = None
    non_finite_metrics: list[str] | None = None  # of the training


def measure_training(metrics: Path) -> dict[str, list[str]]:
    """Which of the numbers that the training wrote are none.

    Raises:
        ValueError: the file is not JSON, or says nothing about the loss.
    """
    found = json.loads(metrics.read_text(encoding="utf-8"))
    if "final_loss" not in found:
        raise ValueError(f"{metrics}: has no final_loss: it is not the metrics.json of a training")
    numbers = {name: value for name, value in found.items() if not isinstance(value, str)}
    return {"non_finite_metrics": sorted(numbers.keys() - finite(numbers).keys())}


def measure(base: Path, adapter: Path, rows: list[dict], *, step: config.CheckSftStep) -> tuple[Measured, list[Check]]:
    """The expensive part: the model is loaded once. Each part that could not be measured is a failed check.

    Raises:
        ValueError: the base's tokenizer is not usable, or no held-out row is short enough to be measured on.
    """
    measured, failures = checks.measure_each(
        {"adapter_readable": lambda: measure_adapter(base, adapter, step.sft.target_modules)}
    )
    if failures or measured["non_finite_tensors"]:  # such an adapter is not put on a model; what is missing now fails
        return Measured(**measured), failures

    from posttrain import backend

    tokenizer = backend.load_tokenizer(base)
    held_out = inference.token_rows(tokenizer, rows, "completion", max_length=step.sft.max_seq_length)
    if not held_out:
        limit = step.sft.max_seq_length
        raise ValueError(f"none of {len(rows)} held-out rows has at most max_seq_length {limit} tokens: raise it")
    measured["num_rows_too_long"] = len(rows) - len(held_out)

    loaded, failures = checks.measure_each({"adapter_loads": lambda: {"model": backend.load_model(base, adapter)}})
    if not failures:
        model = loaded["model"]
        found, failures = checks.measure_each({
            "loss_measured": lambda: measure_loss(model, tokenizer, held_out),
            "answers_generated": lambda: {"answers": generate_answers(model, tokenizer, rows, step.validation)},
        })  # fmt: skip
        measured |= found
    return Measured(**measured), failures


def measure_adapter(base: Path, adapter: Path, targets: list[str] | str) -> dict[str, list[str]]:
    """Reads every byte of the adapter, on its own.

    Raises:
        ValueError: the adapter is not readable, or does not fit the base.
    """
    from posttrain.adapter import plan_merge, read_adapter
    from posttrain.weights import first_non_finite, read_weights

    source, files = read_adapter(adapter), read_weights(base)
    tensors = source.tensors.values()
    with open(source.path, "rb") as file:
        non_finite = [tensor.name for tensor in tensors if first_non_finite(file, tensor) is not None]
        zero = [tensor.name for tensor in tensors if _is_b(tensor.name) and _is_zero(file, tensor)]
    if not non_finite:
        plan_merge(base, files, adapter, source)
    modules = [name.removesuffix(".weight") for file in files for name in file.tensors if name.endswith(".weight")]
    adapted = {found["module"] for tensor in tensors if (found := LORA_KEY.fullmatch(tensor.name))}
    return {
        "non_finite_tensors": non_finite,
        "zero_targets": zero,
        "missing_targets": sorted(expected_targets(modules, targets, adapted) - adapted),
    }


def expected_targets(modules: list[str], targets: list[str] | str, adapted: set[str]) -> set[str]:
    """Modules of the base that are to be adapted; with `all-linear` those of a kind that is adapted anywhere."""
    kinds = {module.rpartition(".")[2] for module in adapted} if targets == "all-linear" else targets
    return {module for module in modules if any(f".{module}".endswith(f".{kind}") for kind in kinds)}


def measure_loss(model, tokenizer, held_out: list[inference.TokenRow]) -> dict[str, Logprobs]:
    """The answers' log-probabilities with the adapter on and, on the same rows, off."""
    logprobs = inference.sequence_logprobs(model, tokenizer, held_out)
    with model.disable_adapter():
        return {"logprobs": logprobs, "base_logprobs": inference.sequence_logprobs(model, tokenizer, held_out)}


def generate_answers(model, tokenizer, rows: list[dict], limits: config.SftLimits) -> list[JudgedAnswer]:
    """Greedy answers to held-out prompts, each judged under `output_format`."""
    prompts = answers.choose_prompts(rows, limits.num_generated_answers)
    found = inference.generate(model, tokenizer, prompts, max_new_tokens=limits.max_new_tokens)
    return answers.judge_format(prompts, found, limits.output_format, markers=answers.markers_of(tokenizer))


def judge(measured: Measured, limits: config.SftLimits) -> list[Check]:
    """Pure: the same numbers and limits give the same checks."""
    found = [
        _none("non_finite_tensors", measured.non_finite_tensors, "Train again with a lower learning_rate."),
        _none("non_finite_metrics", measured.non_finite_metrics, "Train again with a lower learning_rate."),
        _none("missing_targets", measured.missing_targets, "Train again with sft.target_modules as configured."),
        _none(
            "untrained_targets", measured.zero_targets,
            "B is still zero: check learning_rate and warmup_ratio, and that the labels are not all masked.",
        ),
        *judge_loss(measured.logprobs, measured.base_logprobs, limits.max_loss),
    ]  # fmt: skip
    if "output_format_valid" in limits.custom_checks:
        found.append(answers.format_check(measured.answers, limits.min_format_valid_rate))
    return found


def judge_loss(logprobs: Logprobs | None, base: Logprobs | None, max_loss: float) -> list[Check]:
    """Held-out loss below the limit, and below the base's on the same rows."""
    loss, interval = mean_loss(logprobs)
    gain, gain_interval = None, None
    if logprobs and base:
        gained = [(after - before, num) for (after, num), (before, _) in zip(logprobs, base, strict=True)]
        gain = -inference.mean_loss(gained)
        gain_interval = ratio_interval([total for total, _ in gained], [num for _, num in gained])
    return [
        below(
            "held_out_loss", loss, max_loss, interval=interval, detail="nats per token",
            remedy="Train longer or with more rows, and see whether the held-out rows are of the same kind.",
        ),
        above(
            "held_out_loss_below_base", gain, 0.0, interval=gain_interval,
            detail="nats per token by which the adapter lowers the base's loss on the same rows",
            remedy="The adapter does not help: lower learning_rate or epochs, and look at the training rows.",
        ),
    ]  # fmt: skip


def mean_loss(logprobs: Logprobs | None) -> tuple[float | None, tuple[float, float] | None]:
    """Nats per token with its interval over rows."""
    if not logprobs:
        return None, None
    interval = ratio_interval([-total for total, _ in logprobs], [num for _, num in logprobs])
    return inference.mean_loss(logprobs), interval


def numbers_of(measured: Measured) -> dict[str, float]:
    """What the verdict shows beside its checks."""
    return finite({
        "held_out_loss": mean_loss(measured.logprobs)[0],
        "base_held_out_loss": mean_loss(measured.base_logprobs)[0],
        "num_held_out_rows": len(measured.logprobs) if measured.logprobs else None,
        "num_held_out_rows_too_long": measured.num_rows_too_long,
        **answers.rates(measured.answers),
    })  # fmt: skip


def _none(name: str, found: list[str] | None, remedy: str) -> Check:
    return at_most(name, None if found is None else len(found), 0, detail=", ".join((found or [])[:3]), remedy=remedy)


def _is_b(name: str) -> bool:
    found = LORA_KEY.fullmatch(name)
    return found is not None and found["side"] == "B"


def _is_zero(file, tensor) -> bool:
    file.seek(tensor.start)
    return not any(file.read(tensor.num_bytes))


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__doc__)
    parser.add_argument("--base", required=True, help="folder of the base model")
    parser.add_argument("--adapter", required=True, help="folder of the adapter")
    parser.add_argument("--training", required=True, help="metrics.json of the training")
    parser.add_argument("--eval", required=True, help="held-out SFT rows, JSONL")
    checks.add_gate_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    step = config.parse_step(config.CheckSftStep, args.config, args.overrides)
    inputs = {"base": args.base, "adapter": args.adapter, "training": args.training, "eval": args.eval}

    def work() -> checks.VerdictOnAnswers:
        training, unread = checks.measure_each({"training_metrics": lambda: measure_training(Path(args.training))})
        measured, failures = measure(Path(args.base), Path(args.adapter), read_jsonl(args.eval), step=step)
        measured = replace(measured, **training)
        return checks.VerdictOnAnswers(
            gate=args.step,
            subject=checks.subject(inputs),
            checks=(*judge(measured, step.validation), *unread, *failures),
            numbers=numbers_of(measured),
            answers=answers.worst(measured.answers, source="held-out prompt"),
        )

    checks.run_gate(args, inputs=inputs, config=step, work=work)


if __name__ == "__main__":
    main()
