"""Gate check_pairs: are the pairs that were sampled fit to train on? Loads a tokenizer, never a model.

tokenizer folder, held-out SFT rows, pairs to train on and held-out ones, metrics of the sampling -> verdict, manifest
of the prompts' hashes

All that check_data asks of rows it asks of these: their form, duplicates, prompts that are held out, and whether there
are enough for the later gates. Of the sampled pairs it also asks how many there are, how far chosen and rejected lie
apart, that no right answer is rejected, and that one is not simply the longer one.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from posttrain import config
from posttrain.rows import chat, prompts
from posttrain.rows.formats import ANSWER_KEYS
from posttrain.step import kfp_io
from posttrain.step.running import Running
from posttrain.verdict import Check, at_least, at_most, finite, none_wrong
from validators import checks, data, measuring, overlap
from validators.sampling import SAMPLED

FILES = {"sft_eval": "sft_eval", "preference_train": "train", "preference_eval": "eval"}  # of check_data -> flag
REWARDS = ("mean_chosen_reward", "mean_rejected_reward")
FEW = "Sample more answers (pairs.num_answers) or at a higher pairs.temperature, set pairs.use_reference to true, "
ALIKE = "Raise pairs.{}, or sample at a higher pairs.temperature."
RIGHT_REJECTED = "Remove these pairs, and correct validation.answer_match or match_options: a right answer is rejected."
WRONG_CHOSEN = "Remove these pairs, and correct validation.answer_match or match_options: a wrong answer is chosen."
LENGTH = (
    "DPO would learn length: {} answers are chosen. Sample at a lower pairs.temperature, correct what validation."
    "answer_match calls right, or raise validation.max_pair_length_ratio."
)


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Numbers that judge() needs; None where one could not be measured."""

    num_sampled_pairs: int | None = None
    pair_yield: float | None = None
    least_margin: float | None = None
    mean_margin: float | None = None
    mean_chosen_reward: float | None = None  # by a reward model
    mean_rejected_reward: float | None = None
    right_rejected: list[str] | None = None  # ids of sampled pairs
    wrong_chosen: list[str] | None = None
    num_chosen_tokens: int | None = None  # of all sampled pairs
    num_rejected_tokens: int | None = None


def measure(
    load_tokenizer: Callable[[], Any], pairs: Iterable[dict], training: Path, limits: config.PairsLimits
) -> measuring.Measured:
    """Measures what check_data does not: the sampled pairs among those to train on."""

    def sampled() -> list[dict]:
        return [row for row in pairs if row["id"].startswith(SAMPLED)]

    parts = {
        "sampling_metrics": lambda: read_metrics(training),
        "pair_lengths": lambda: num_tokens(load_tokenizer(), sampled()),
    }
    if limits.matcher in config.MATCHERS:
        parts["sampled_answers"] = lambda: misjudged(sampled(), limits, data.Written(load_tokenizer))
    return measuring.side_by_side(parts, checks.timeouts(limits))


def read_metrics(path: Path) -> dict[str, float]:
    """The numbers of the sampling that are judged; without a pair there is no margin."""
    metrics = json.loads(path.read_text(encoding="utf-8"))
    names = ("num_sampled_pairs", "pair_yield", "least_margin", "mean_margin", *REWARDS)
    return {name: metrics[name] for name in names if name in metrics}


def num_tokens(tokenizer: Any, pairs: list[dict]) -> dict[str, int]:
    """Tokens of all chosen answers, and of all rejected ones."""
    return {
        f"num_{key}_tokens": sum(len(chat.split(tokenizer, row["prompt"], row[key])[1]) for row in pairs)
        for key in ANSWER_KEYS["preference"]
    }


def misjudged(pairs: list[dict], rule: config.Matching, written: data.Written) -> dict[str, list[str]]:
    """Pairs whose rejected answer is right, and those whose chosen one is wrong, by all accepted answers."""
    is_right = {
        key: [data.is_right(row, written(row, key), rule) for row in pairs] for key in ANSWER_KEYS["preference"]
    }
    return {
        "right_rejected": [row["id"] for row, right in zip(pairs, is_right["rejected"], strict=True) if right],
        "wrong_chosen": [row["id"] for row, right in zip(pairs, is_right["chosen"], strict=True) if not right],
    }


def judge(numbers: Numbers, limits: config.PairsLimits, settings: config.PairsConfig) -> list[Check]:
    """Pure: the same numbers, limits and settings give the same checks."""
    least = f"or lower validation.{{}}, or give more prompts: {settings.num_answers} answers to each were sampled."
    checks = [
        at_least(
            "sampled_pairs",
            numbers.num_sampled_pairs,
            limits.min_sampled_pairs,
            remedy=FEW + least.format("min_sampled_pairs"),
        ),
        at_least(
            "pair_yield",
            numbers.pair_yield,
            limits.min_pair_yield,
            detail="prompts whose answers gave a pair",
            remedy=FEW + least.format("min_pair_yield"),
        ),
        _margin_check(numbers, settings),
        *_length_checks(numbers, limits.max_pair_length_ratio),
    ]
    if limits.matcher in config.MATCHERS:
        checks += [
            none_wrong("rejected_answers", numbers.right_rejected, RIGHT_REJECTED),
            none_wrong("chosen_answers", numbers.wrong_chosen, WRONG_CHOSEN),
        ]
    return checks


def _margin_check(numbers: Numbers, settings: config.PairsConfig) -> Check:
    key = "min_reward_margin" if settings.reward_model else "min_margin"
    detail = f"rewards of {settings.reward_model}" if settings.reward_model else ""
    remedy = ALIKE.format(key)
    return at_least("least_margin", numbers.least_margin, settings.least_margin, detail=detail, remedy=remedy)


def _length_checks(numbers: Numbers, limit: float) -> list[Check]:
    """The pairs are all that are trained on, not a sample of them: no interval."""
    chosen, rejected = numbers.num_chosen_tokens, numbers.num_rejected_tokens
    ratio = chosen / rejected if chosen and rejected else None
    detail = "tokens of all chosen answers, divided by those of the rejected ones"
    return [
        at_most("pair_length_ratio", ratio, limit, detail=detail, remedy=LENGTH.format("longer")),
        at_least("pair_length_ratio_shorter", ratio, 1 / limit, detail=detail, remedy=LENGTH.format("shorter")),
    ]


def numbers_of(numbers: Numbers) -> dict[str, float]:
    """Numbers that the verdict shows beside its checks."""
    names = ("mean_margin", "num_sampled_pairs", *REWARDS)
    return finite({name: getattr(numbers, name) for name in names})


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--tokenizer", required=True, help="folder of the base model's tokenizer")
    parser.add_argument("--sft-eval", required=True, help="held-out SFT rows, JSONL")
    parser.add_argument("--train", required=True, help="pairs to train on, JSONL")
    parser.add_argument("--eval", required=True, help="held-out pairs, JSONL")
    parser.add_argument("--sampling", required=True, help="metrics.json of the sampling")
    parser.add_argument("--manifest", required=True, help="output: hashes of all prompts with their row ids, JSON")
    checks.add_gate_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    step = config.parse_step(config.CheckPairsStep, args.config, args.overrides)
    paths = {name: getattr(args, flag) for name, flag in FILES.items()}
    with tempfile.TemporaryDirectory() as folder:
        asked = prompts.bring(step.validation, Path(folder), step.allowed_prefixes)
        inputs = {FILES[name]: path for name, path in paths.items()}
        checks.run_gate(
            args,
            inputs={"tokenizer": args.tokenizer, "sampling": args.sampling, **inputs, **asked},
            config=step,
            work=partial(decide, args, paths, asked, step),
            outputs={"manifest": args.manifest},
        )


def decide(
    args: argparse.Namespace,
    paths: dict[str, str],
    asked: dict[str, str],
    step: config.CheckPairsStep,
    running: Running,
) -> checks.GateVerdict:
    """Measures and judges; writes the manifest."""
    rows, asked_rows = ({name: data.readable(path) for name, path in some.items()} for some in (paths, asked))
    load_tokenizer = cache(partial(chat.ChatTokenizer, args.tokenizer))
    of_rows = data.measure(load_tokenizer, rows, asked_rows, step, manifest=args.manifest)
    of_pairs = measure(load_tokenizer, rows["preference_train"], Path(args.sampling), step.validation)
    row_numbers, numbers = of_rows.read(data.Numbers), of_pairs.read(Numbers)
    if row_numbers.shared_prompts is None:  # the manifest is missing or incomplete
        overlap.write_manifest(args.manifest, {})
    return checks.GateVerdict(
        gate=running.step,
        subject=running.inputs,
        checks=(
            *judge(numbers, step.validation, step.pairs),
            *data.judge(row_numbers, step.validation, step.evidence),
            *of_pairs.failures,
            *of_rows.failures,
        ),
        numbers=data.numbers_of(row_numbers) | numbers_of(numbers),
        confidence=step.validation.confidence,
        answer_match=step.validation.matcher,
        seconds=of_rows.seconds | of_pairs.seconds,
    )


if __name__ == "__main__":
    main()
