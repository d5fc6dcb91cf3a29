"""Gate check_sft: is the adapter complete and better than its base on held-out rows, and are its answers right?

base and adapter folder, metrics of the training, held-out SFT rows -> verdict

    python -m validators.sft --step check_sft --storage-root DIR --base DIR --adapter DIR --training metrics.json
        --eval eval.jsonl --verdict verdict.json --report report.html --summary summary.md --answers answers.jsonl
        --metrics numbers.json --passed passed
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from posttrain import config
from posttrain.rows import chat
from posttrain.rows.formats import read_jsonl
from posttrain.step import kfp_io
from posttrain.step.running import Running
from posttrain.verdict import Check, at_most, finite, none_wrong
from posttrain.weights.targets import Layout, resolve
from validators import answers, checks, content, custom, inference, measuring
from validators.answers import JudgedAnswer
from validators.held_out import within
from validators.intervals import ratio
from validators.session import Session, token_rows

Logprobs = list[tuple[float, int]]  # of each row's answer: sum in nats, number of tokens
Shapes = dict[str, list[int]]  # by tensor name

LOWER_RATE = "Train again with a lower sft.learning_rate."
AS_CONFIGURED = "Train again on this base, with sft.lora_r and sft.target_modules as they are configured."
STILL_ZERO = "Training left these at zero: raise sft.learning_rate, or check that not every label is masked."


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Numbers that judge() needs; None where one could not be measured."""

    shapes: Shapes | None = None  # of the adapter's tensors
    expected_shapes: Shapes | None = None  # of those that a training of this configuration writes
    non_finite_tensors: list[str] | None = None
    zero_tensors: list[str] | None = None
    non_finite_metrics: list[str] | None = None  # of the training
    max_gradient_norm: float | None = None
    base_logprobs: Logprobs | None = None
    logprobs: Logprobs | None = None
    answers: list[JudgedAnswer] | None = None
    base_answers: list[JudgedAnswer] | None = None
    num_rows_too_long: int | None = None
    noise_floor_format_valid: float | None = None


def measure(
    base: Path, adapter: Path, training: Path, rows: list[dict], *, step: config.CheckSftStep
) -> measuring.Measured:
    """Reads files side by side, then measures what needs the model, loaded once. A broken adapter is never loaded."""
    timeouts = checks.timeouts(step.validation)
    files = measuring.side_by_side(
        {
            "adapter_readable": lambda: read_tensors(adapter),
            "training_metrics": lambda: read_metrics(training),
        },
        timeouts,
    )
    parts = Measurer(base, adapter, rows, step).parts()
    broken = files.numbers.get("non_finite_tensors")
    if broken is None or broken:
        because = "the adapter has NaN or infinity in its weights" if broken else "the adapter could not be read"
        return files | measuring.not_run(list(parts), because)
    return files | measuring.in_order(parts, timeouts)


def read_tensors(adapter: Path) -> dict[str, Any]:
    """Reads every byte of the adapter.

    Raises:
        ValueError: it is not a complete safetensors file.
    """
    from posttrain.weights.adapter import read_adapter
    from posttrain.weights.tensors import FLOAT_BYTES, first_non_finite, is_zero

    source = read_adapter(adapter)
    tensors = [tensor for tensor in source.tensors.values() if tensor.dtype in FLOAT_BYTES]
    with open(source.path, "rb") as file:
        non_finite = [tensor.name for tensor in tensors if first_non_finite(file, tensor) is not None]
    return {
        "shapes": {name: list(tensor.shape) for name, tensor in source.tensors.items()},
        "non_finite_tensors": non_finite,
        "zero_tensors": [tensor.name for tensor in tensors if is_zero((source.path, tensor))],
    }


def expected_shapes(base: Path, sft: config.SftConfig) -> Shapes:
    """Shapes of the tensors that peft writes for these settings, by an empty model of the base's configuration."""
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoConfig, AutoModelForCausalLM

    targets = resolve(Layout.of(base), sft.target_modules, setting="sft.target_modules")
    lora = LoraConfig(r=sft.lora_r, target_modules=targets.modules, task_type="CAUSAL_LM")
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base, local_files_only=True))
        tensors = get_peft_model_state_dict(get_peft_model(empty, lora), save_embedding_layers=False)
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


REQUIRED = ("final_loss", "max_gradient_norm")  # of a training's metrics, where they are there at all


def read_metrics(path: Path) -> dict[str, Any]:
    """The training's metrics that are not finite numbers, and its largest gradient norm.

    Raises:
        ValueError: the file is not JSON, or has no loss.
    """
    metrics = json.loads(path.read_text(encoding="utf-8"))
    if "final_loss" not in metrics:
        raise ValueError(f"{path}: has no final_loss: pass the metrics.json of an SFT training")
    numbers = {name: _number(value) for name, value in metrics.items() if name in REQUIRED or not _is_word(value)}
    return {
        "non_finite_metrics": sorted(numbers.keys() - finite(numbers).keys()),
        "max_gradient_norm": _number(metrics.get("max_gradient_norm")),
    }


def _is_word(value: Any) -> bool:
    """Tells whether this is text that no reader could take for a number: "0.5" and "nan" are numbers in disguise."""
    try:
        float(value) if isinstance(value, str) else None
    except ValueError:
        return True
    return False


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


class Measurer:
    """Measures what needs the model, in one process; keeps there what later measurements need of earlier ones."""

    def __init__(self, base: Path, adapter: Path, rows: list[dict], step: config.CheckSftStep):
        self.base, self.adapter, self.rows, self.step = base, adapter, rows, step
        self.session = Session(step.validation)
        self.tokenizer: Any = None
        self.token_rows: list[inference.TokenRow] = []
        fitting = within(base, rows, step.sft.max_seq_length)
        self.prompts = answers.choose_prompts(fitting, step.validation.num_generated_answers)

    def parts(self) -> measuring.Parts:
        """The measurements, in their order."""
        parts = {
            "expected_tensors": lambda: {"expected_shapes": expected_shapes(self.base, self.step.sft)},
            "adapter_fits_base": lambda: check_fit(self.base, self.adapter),
            "held_out_rows": self.held_out_rows,
            "adapter_loads": self.load,
            "loss_measured": lambda: measure_loss(self.session.model, self.tokenizer, self.token_rows),
            "answers_generated": lambda: {"answers": self.session.answer(self.prompts)},
            "base_answers_generated": lambda: {"base_answers": self.session.answer_without_adapter(self.prompts)},
        }
        if self.step.validation.noise_floor:
            parts["noise_floor"] = lambda: self.session.noise_floor(self.prompts)
        return parts

    def held_out_rows(self) -> dict[str, int]:
        """Counts the rows that are too long to be measured on."""
        self.tokenizer = chat.load_tokenizer(self.base)
        self.token_rows = token_rows(self.tokenizer, self.rows, self.step.sft.max_seq_length)
        return {"num_rows_too_long": len(self.rows) - len(self.token_rows)}

    def load(self) -> None:
        self.session.load(self.base, self.adapter, rank=self.step.sft.lora_r, tokenizer=self.tokenizer)


def check_fit(base: Path, adapter: Path) -> None:
    """Raises ValueError unless this is a LoRA adapter on tensors that the base has, in their shapes."""
    from posttrain.weights.adapter import plan_merge, read_adapter
    from posttrain.weights.tensors import read_weights

    plan_merge(base, read_weights(base), adapter, read_adapter(adapter))


def measure_loss(model, tokenizer, rows: list[inference.TokenRow]) -> dict[str, Logprobs]:
    """The answers' log-probabilities with the adapter on and, on the same rows, off."""
    logprobs = inference.sequence_logprobs(model, tokenizer, rows)
    with model.disable_adapter():
        return {"logprobs": logprobs, "base_logprobs": inference.sequence_logprobs(model, tokenizer, rows, name="base")}


def judge(numbers: Numbers, limits: config.SftLimits) -> list[Check]:
    """Pure: the same numbers and limits give the same checks."""
    return [
        *judge_adapter(numbers),
        none_wrong("finite_metrics", numbers.non_finite_metrics, LOWER_RATE),
        at_most(
            "gradient_norm",
            numbers.max_gradient_norm,
            limits.max_gradient_norm,
            detail="largest of all steps, before clipping",
            remedy=f"Look at the rows of that step. {LOWER_RATE}",
        ),
        *judge_loss(numbers.logprobs, numbers.base_logprobs, limits),
        *judge_answers(numbers.answers, limits),
    ]


def judge_adapter(numbers: Numbers) -> list[Check]:
    """Checks that every tensor that was to be trained is there and has been trained."""
    actual, expected = numbers.shapes, numbers.expected_shapes
    names = shapes = None
    if actual is not None and expected is not None:
        names = sorted(actual.keys() ^ expected.keys())
        shapes = [name for name in actual if actual[name] != expected.get(name, actual[name])]
    return [
        none_wrong("adapter_tensors", names, AS_CONFIGURED),
        none_wrong("adapter_shapes", shapes, AS_CONFIGURED),
        none_wrong("finite_adapter", numbers.non_finite_tensors, LOWER_RATE),
        none_wrong("adapter_trained", numbers.zero_tensors, STILL_ZERO),
    ]


def judge_loss(logprobs: Logprobs | None, base: Logprobs | None, limits: config.SftLimits) -> list[Check]:
    """Checks that held-out loss is below the limit, and below the base's on the same rows."""
    num_tokens = [num for _, num in logprobs or []]
    losses, gains = [-total for total, _ in logprobs or []], None
    if logprobs and base:
        gains = [after - before for (after, _), (before, _) in zip(logprobs, base, strict=True)]
    return [
        ratio(
            "held_out_loss",
            losses,
            num_tokens,
            "<",
            limits.max_loss,
            confidence=limits.confidence,
            detail="nats per token",
            remedy="Train longer or on more rows, and check that the held-out rows are of the same kind; "
            "or raise validation.max_loss.",
        ),
        ratio(
            "held_out_loss_below_base",
            gains,
            num_tokens,
            ">",
            limits.min_loss_gain,
            confidence=limits.confidence,
            detail="nats per token that the adapter takes off the base's loss",
            remedy="The adapter does not help: check that this is the base it was trained on, "
            "or lower sft.learning_rate or sft.epochs.",
        ),
    ]


def judge_answers(judged: list[JudgedAnswer] | None, limits: config.SftLimits) -> list[Check]:
    """Checks that answers end by themselves and, where that is configured, have the right form."""
    formats = [answers.format_check(judged, limits)] if "output_format_valid" in limits.custom_checks else []
    return [answers.stopped_check(judged, limits), *formats]


def numbers_of(numbers: Numbers) -> dict[str, float]:
    """Numbers that the verdict shows beside its checks."""
    losses = {"held_out_loss": numbers.logprobs, "base_held_out_loss": numbers.base_logprobs}
    counts = {
        "num_held_out_rows": len(numbers.logprobs) if numbers.logprobs else None,
        "num_held_out_rows_too_long": numbers.num_rows_too_long,
        "max_gradient_norm": numbers.max_gradient_norm,
        "noise_floor_format_valid": numbers.noise_floor_format_valid,
    }
    losses = {name: inference.mean_loss(logprobs) for name, logprobs in losses.items() if logprobs}
    return finite(losses | counts | answers.rates(numbers.answers))


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--base", required=True, help="folder of the base model")
    parser.add_argument("--adapter", required=True, help="folder of the adapter")
    parser.add_argument("--training", required=True, help="metrics.json of the training")
    parser.add_argument("--eval", required=True, help="held-out SFT rows, JSONL")
    checks.add_gate_flags(parser, with_answers=True)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    step = config.parse_step(config.CheckSftStep, args.config, args.overrides)
    inputs = {"base": args.base, "adapter": args.adapter, "training": args.training, "eval": args.eval}
    with tempfile.TemporaryDirectory() as folder:
        inputs |= content.bring_judge(step.validation, Path(folder), step.allowed_prefixes)
        reusable = content.is_reusable(step.validation)
        checks.run_gate(args, inputs=inputs, config=step, work=partial(decide, inputs, step), reusable=reusable)


def decide(inputs: dict[str, str], step: config.CheckSftStep, running: Running) -> checks.GateVerdict:
    """Measures and judges."""
    limits, rows = step.validation, read_jsonl(inputs["eval"])
    measured = measure(*(Path(inputs[name]) for name in ("base", "adapter", "training")), rows, step=step)
    numbers = measured.read(Numbers)
    fitting = within(Path(inputs["base"]), rows, step.sft.max_seq_length)
    asked = answers.choose_rows(fitting, limits.num_generated_answers)
    answered, scoring = content.score(
        content.Content(
            references=content.references_by_row(asked, rows), model=numbers.answers, base=numbers.base_answers
        ),
        limits,
        inputs.get(content.JUDGE),
    )
    own, seconds = custom.run(limits, numbers.answers, content.context(answered, limits, gate=running.step))
    return checks.GateVerdict(
        gate=running.step,
        subject=running.inputs,
        checks=(*content.judge(answered, limits), *judge(numbers, limits), *own, *(measured | scoring).failures),
        numbers=numbers_of(numbers) | content.numbers_of(answered),
        confidence=limits.confidence,
        answer_match=limits.matcher,
        seconds=measured.seconds | scoring.seconds | seconds,
        answers=content.shown(answered),
    )


if __name__ == "__main__":
    main()
