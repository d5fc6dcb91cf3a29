"""Gate check_alignment: does the aligned model prefer what it was taught to prefer, without having lost anything else?

model before, model, held-out preference rows -> verdict; with SFT rows instead (check_safety) on the answers alone

Reward accuracy alone passes a model that learned nothing, and a margin can grow while the chosen answers become
unlikely (https://github.com/huggingface/trl/issues/800). So everything is measured against the model before, with
answers really generated.

    python -m validators.alignment --step check_alignment --storage-root DIR --before DIR --model DIR
        --preference-eval eval.jsonl --verdict verdict.json --report report.html --metrics metrics.json --passed passed
"""

import argparse
import gc
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import config, inference, kfp_io
from posttrain.data import read_jsonl, write_jsonl
from posttrain.verdict import Check, above, at_least, at_most, finite
from validators import answers, checks
from validators.answers import JudgedAnswer, Message
from validators.intervals import mean_interval, ratio_interval, wilson

Logprobs = list[tuple[float, int]]  # of each row's answer: sum in nats, number of tokens


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What both models are asked."""

    pairs: list[dict]  # held-out preference rows; none in check_safety
    prompts: list[list[Message]]  # held-out
    red_team: list[list[Message]]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What one model gave. None: could not be measured."""

    chosen: Logprobs | None = None
    rejected: Logprobs | None = None
    answers: list[JudgedAnswer] | None = None
    red_team_answers: list[JudgedAnswer] | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Both models on the same questions."""

    before: Observed
    after: Observed


def measure(
    before: Path, model: Path, questions: Questions, *, step: config.CheckAlignmentStep
) -> tuple[Measured, list[Check]]:
    """Observes one model after the other: never are both in memory."""
    found_before, failures_before = observe(before, questions, name="model_before", step=step)
    found_after, failures = observe(model, questions, name="model", step=step)
    return Measured(before=found_before, after=found_after), [*failures_before, *failures]


def observe(
    path: Path, questions: Questions, *, name: str, step: config.CheckAlignmentStep
) -> tuple[Observed, list[Check]]:
    """Log-probabilities and answers of one model; a failed check for each part that could not be measured."""
    from posttrain import backend

    loaded, failures = checks.measure_each(
        {f"{name}_loads": lambda: {"tokenizer": backend.load_tokenizer(path), "model": backend.load_model(path)}}
    )
    if failures:
        return Observed(), failures
    parts = {f"{name}_answers": lambda: {"answers": _answer(loaded, questions.prompts, step.validation)}}
    if questions.pairs:
        parts[f"{name}_log_probabilities"] = lambda: _preferences(loaded, questions.pairs, step.dpo.max_seq_length)
    if questions.red_team:
        parts[f"{name}_red_team_answers"] = lambda: {
            "red_team_answers": _resist(loaded, questions.red_team, step.validation)
        }
    found, failures = checks.measure_each(parts)
    loaded.clear()
    _free_memory()
    return Observed(**found), failures


def _preferences(loaded: dict[str, Any], pairs: list[dict], max_length: int) -> dict[str, Logprobs]:
    """Log-probabilities of both answers; pairs of which one is over `max_length` are left out, as in training."""
    model, tokenizer = loaded["model"], loaded["tokenizer"]
    keys = ("chosen", "rejected")
    rows = [[inference.token_row(tokenizer, pair["prompt"], pair[key]) for key in keys] for pair in pairs]
    rows = [both for both in rows if max(map(len, both)) <= max_length]
    if not rows:
        raise ValueError(f"none of {len(pairs)} held-out pairs has at most max_seq_length {max_length} tokens")
    found = inference.sequence_logprobs(model, tokenizer, [row for both in rows for row in both])
    return {"chosen": found[0::2], "rejected": found[1::2]}


def _answer(loaded: dict[str, Any], prompts: list[list[Message]], limits: config.AlignmentLimits) -> list[JudgedAnswer]:
    found = inference.generate(**loaded, prompts=prompts, max_new_tokens=limits.max_new_tokens)
    markers = answers.markers_of(loaded["tokenizer"])
    return answers.judge_format(prompts, found, limits.output_format, markers=markers)


def _resist(loaded: dict[str, Any], prompts: list[list[Message]], limits: config.AlignmentLimits) -> list[JudgedAnswer]:
    found = inference.generate(**loaded, prompts=prompts, max_new_tokens=limits.max_new_tokens)
    return answers.judge_closed_form(prompts, found, limits.output_format)


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def judge(measured: Measured, *, step: config.CheckAlignmentStep, with_preferences: bool) -> list[Check]:
    """Pure: the same numbers and limits give the same checks."""
    limits, found = step.validation, []
    if with_preferences:
        found += judge_preferences(measured, limits, beta=step.dpo.beta) + [_length_check(measured, limits)]
    if "output_format_valid" in limits.custom_checks:
        before, after = measured.before.answers, measured.after.answers
        found.append(answers.format_check(after, limits.min_format_valid_rate))
        found.append(_drop_check("output_format_drop", before, after, limits.max_format_drop))
    if "no_harmful_content" in limits.custom_checks:
        before, after = measured.before.red_team_answers, measured.after.red_team_answers
        found.append(answers.harmless_check(after, limits.min_harmless_rate))
        found.append(_drop_check("harmless_drop", before, after, limits.max_harmless_drop))
    return found


def judge_preferences(measured: Measured, limits: config.AlignmentLimits, *, beta: float) -> list[Check]:
    """Reward accuracy, margin and what became of the chosen answers, all against the model before."""
    gains = preference_gains(measured)
    margins = None if gains is None else [beta * (chosen - rejected) for chosen, rejected in gains]
    num_right = None if margins is None else sum(margin > 0 for margin in margins)
    accuracy = None if margins is None else num_right / len(margins)
    interval = None if margins is None else wilson(num_right, len(margins))
    margin = None if margins is None else sum(margins) / len(margins)
    drop, drop_interval = chosen_drop(measured)
    counted = "" if margins is None else f"{num_right} of {len(margins)} held-out pairs"
    teach = "Train longer, with a higher dpo.learning_rate, or with pairs that differ more clearly."
    return [
        at_least("reward_accuracy", accuracy, limits.min_accuracy, interval=interval, detail=counted, remedy=teach),
        above(
            "reward_accuracy_above_chance", interval and interval[0], 0.5, detail="low end of the 95 % interval",
            remedy="Hold out more pairs, so that chance is ruled out, or train until more of them are right.",
        ),
        above(
            "reward_margin", margin, limits.min_margin, interval=margins and mean_interval(margins),
            detail="beta times the shift towards the chosen answers, mean over pairs", remedy=teach,
        ),
        above(
            "preference_shift", margin and margin / beta, limits.min_preference_shift,
            detail="nats per answer; below the limit the model hardly changed, however accurate it is", remedy=teach,
        ),
        at_most(
            "chosen_drop", drop, limits.max_chosen_drop, interval=drop_interval,
            detail="nats per token by which the chosen answers became less likely",
            remedy='Lower dpo.learning_rate, raise beta, or add "sft" to dpo.loss_type.',
        ),
    ]  # fmt: skip


def preference_gains(measured: Measured) -> list[tuple[float, float]] | None:
    """By how many nats the model changed each pair's chosen and rejected answer; None if one model was not measured."""
    before, after = measured.before, measured.after
    columns = [before.chosen, after.chosen, before.rejected, after.rejected]
    if not all(columns):
        return None
    return [
        (chosen - chosen_before, rejected - rejected_before)
        for (chosen_before, _), (chosen, _), (rejected_before, _), (rejected, _) in zip(*columns, strict=True)
    ]


def chosen_drop(measured: Measured) -> tuple[float | None, tuple[float, float] | None]:
    """Fall of the chosen answers' log-probability in nats per token, with its interval over pairs."""
    gains = preference_gains(measured)
    if gains is None:
        return None, None
    drops, tokens = [-chosen for chosen, _ in gains], [num for _, num in measured.after.chosen]
    return sum(drops) / sum(tokens), ratio_interval(drops, tokens)


def _length_check(measured: Measured, limits: config.AlignmentLimits) -> Check:
    before, after = _mean_tokens(measured.before.answers), _mean_tokens(measured.after.answers)
    ratio = after / max(before, 1.0) if before is not None and after is not None else None
    return at_most(
        "length_ratio", ratio, limits.max_length_ratio,
        detail="" if ratio is None else f"mean answer {after:.1f} tokens, before {before:.1f}",
        remedy="Give pairs whose chosen answer is not simply the longer one.",
    )  # fmt: skip


def _drop_check(name: str, before: list[JudgedAnswer] | None, after: list[JudgedAnswer] | None, limit: float) -> Check:
    counted, drop = "", None
    if before and after:
        sound = answers.num_sound(before), answers.num_sound(after)
        # One division: 1 of 20 is then exactly the 0.05 of a limit.
        drop = (sound[0] * len(after) - sound[1] * len(before)) / (len(before) * len(after))
        counted = f"{sound[1]} of {len(after)}, before {sound[0]} of {len(before)}"
    return at_most(
        name, drop, limit, detail=counted,
        remedy="Training took away what the model before could do: lower learning_rate or add rows that keep it.",
    )  # fmt: skip


def _mean_tokens(judged: list[JudgedAnswer] | None) -> float | None:
    return sum(one.answer.num_tokens for one in judged) / len(judged) if judged else None


def numbers_of(measured: Measured) -> dict[str, float]:
    """What the verdict shows beside its checks."""
    gains = preference_gains(measured)
    sides = (("before_", measured.before), ("", measured.after))
    return finite({
        "num_pairs": gains and len(gains),
        "chosen_gain": gains and sum(chosen for chosen, _ in gains) / len(gains),
        "rejected_gain": gains and sum(rejected for _, rejected in gains) / len(gains),
        **{prefix + name: rate for prefix, side in sides for name, rate in answers.rates(side.answers).items()},
        **{f"{prefix}harmless_rate": answers.rate(side.red_team_answers) for prefix, side in sides},
    })  # fmt: skip


def worst_answers(observed: Observed) -> tuple:
    """For the page: some of each kind."""
    harmful = answers.worst(observed.red_team_answers, source="red-team prompt")
    malformed = answers.worst(observed.answers, source="held-out prompt")
    return (harmful[:3] + malformed + harmful[3:])[: answers.NUM_SHOWN]


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__doc__)
    parser.add_argument("--before", required=True, help="folder of the model that training started from")
    parser.add_argument("--model", required=True, help="folder of the model to judge")
    rows = parser.add_mutually_exclusive_group(required=True)
    rows.add_argument("--preference-eval", help="held-out preference rows, JSONL")
    rows.add_argument("--sft-eval", help="held-out SFT rows, JSONL")
    checks.add_gate_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    step = config.parse_step(config.CheckAlignmentStep, args.config, args.overrides)
    answers.check_judge(step.validation)
    with tempfile.TemporaryDirectory() as folder:
        inputs = {name: getattr(args, name) for name in ("before", "model", "preference_eval", "sft_eval")}
        inputs["red_team_prompts"] = _copy_red_team(step, Path(folder))
        checks.run_gate(args, inputs=inputs, config=step, work=lambda: decide(args.step, inputs, step))


def decide(gate: str, inputs: dict[str, str | None], step: config.CheckAlignmentStep) -> checks.VerdictOnAnswers:
    """Measures and judges."""
    limits = step.validation
    rows = read_jsonl(inputs["preference_eval"] or inputs["sft_eval"])
    red_team = read_jsonl(inputs["red_team_prompts"]) if inputs["red_team_prompts"] else []
    questions = Questions(
        pairs=rows if inputs["preference_eval"] else [],
        prompts=answers.choose_prompts(rows, limits.num_generated_answers),
        red_team=[row["prompt"] for row in red_team],
    )
    measured, failures = measure(Path(inputs["before"]), Path(inputs["model"]), questions, step=step)
    return checks.VerdictOnAnswers(
        gate=gate,
        subject=checks.subject(inputs),
        checks=(*judge(measured, step=step, with_preferences=bool(questions.pairs)), *failures),
        numbers=numbers_of(measured),
        answers=worst_answers(measured.after),
    )


def _copy_red_team(step: config.CheckAlignmentStep, folder: Path) -> str | None:
    """A local copy of the red-team prompts: as an input their content, not their address, is what the verdict binds."""
    if "no_harmful_content" not in step.validation.custom_checks:
        return None
    prompts = answers.read_prompts(step.validation.red_team_prompts, step.allowed_prefixes)
    path = folder / "red_team_prompts.jsonl"
    write_jsonl(path, [{"prompt": prompt} for prompt in prompts])
    return str(path)


if __name__ == "__main__":
    main()
