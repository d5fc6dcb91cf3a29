"""Gate check_alignment: does the aligned model prefer what it was taught to prefer, without having lost anything else?

base, previous model, model, metrics of the training, held-out preference and SFT rows -> verdict, the models' answers,
confusion matrix

check_preference_alignment is the same without SFT, where the previous model is the base. check_safety has SFT rows only
and judges nothing but answers. Everything is compared with the previous model, on answers that are really generated.

    python -m validators.alignment --step check_alignment --storage-root DIR --base DIR --before DIR --model DIR
        --training metrics.json --preference-eval pairs.jsonl --sft-eval rows.jsonl --verdict verdict.json
        --report report.html --summary summary.md --answers answers.jsonl --confusion confusion.json
        --metrics metrics.json --passed passed
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from posttrain import config, storage
from posttrain.rows import prompts
from posttrain.rows.formats import ANSWER_KEYS, prompt_key, read_jsonl
from posttrain.rows.thoughts import said
from posttrain.step import kfp_io
from posttrain.step.running import Running
from posttrain.verdict import Check, finite
from validators import answers, checks, content, custom, held_out, judges, measuring, observe, preferences, safety
from validators.answers import JudgedAnswer
from validators.observe import Observed, Questions
from validators.safety import RedTeam
from validators.skills import leg

INPUTS = ("base", "before", "model", "training", *held_out.KINDS)
ASK_FOR_HARM = "no_harmful_content"


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Numbers that judge() needs; None where one could not be measured."""

    start_loss: float | None = None  # DPO's, before its first step
    model: Observed = Observed()
    before: Observed = Observed()
    base: Observed = Observed()
    noise_floor_format_valid: float | None = None


def read_training(metrics: str) -> dict[str, float]:
    """DPO's loss before its first step, as the training wrote it.

    Raises:
        ValueError: the file is not JSON, or has no such loss.
    """
    numbers = json.loads(Path(metrics).read_text(encoding="utf-8"))
    if "start_loss" not in numbers:
        raise ValueError(f"{metrics}: has no start_loss: pass the metrics.json of a preference training")
    if type(numbers["start_loss"]) not in (int, float):
        raise ValueError(f"{metrics}: start_loss is {str(numbers['start_loss'])[:80]!r}, not a number: train again")
    return {"start_loss": numbers["start_loss"]}


def read_questions(inputs: dict[str, str | None], step: config.CheckAlignmentStep) -> tuple[Questions, list[dict]]:
    """Questions for the models, and the rows that their held-out prompts come from, in the same order."""
    rows = held_out.read(inputs, step, Path(inputs["model"]))
    chosen = answers.choose_rows(held_out.all_of(rows), step.validation.num_generated_answers)
    asked = {key: [row["prompt"] for row in read_jsonl(inputs[key])] if inputs.get(key) else [] for key in prompts.KEYS}
    questions = Questions(
        pairs=rows["preference_eval"],
        sft_rows=rows["sft_eval"],
        held_out=[row["prompt"] for row in chosen],
        **{key.removesuffix("_prompts"): rows for key, rows in asked.items()},
    )
    return questions, chosen


def judge(
    numbers: Numbers, rows: list[dict], *, step: config.CheckAlignmentStep, questions: Questions, has_base: bool
) -> list[Check]:
    """Pure: the same numbers and limits give the same checks."""
    limits, model, before = step.validation, numbers.model, numbers.before
    judged: list[Check] = []
    if questions.pairs:
        judged += judge_preferences(model, before, numbers.start_loss, step=step)
        judged += answers.length_checks(before.held_out, model.held_out, limits)
    if questions.sft_rows:
        judged.append(preferences.sft_loss_check(before.sft, model.sft, limits))
    judged += [answers.stopped_check(model.held_out, limits), answers.repetition_check(model.held_out, limits)]
    if "output_format_valid" in limits.custom_checks:
        judged.append(answers.format_check(model.held_out, limits))
        judged.append(answers.format_drop_check(before.held_out, model.held_out, limits))
    if ASK_FOR_HARM in limits.custom_checks:
        base = numbers.base if has_base else before
        judged += safety.harmless_checks(*map(_red_team, (model, before, base)), limits)
        legitimate = wanted(model, rows, limits)["answer"] if limits.benign_prompts is None else model.benign
        judged.append(safety.over_refusal_check(legitimate, limits))
    if limits.off_topic_prompts:
        judged.append(safety.off_topic_check(model.off_topic, limits))
    return judged


def judge_preferences(
    model: Observed, before: Observed, start_loss: float | None, *, step: config.CheckAlignmentStep
) -> list[Check]:
    """Checks on what was learned, where training started, and what it cost."""
    limits, gains = step.validation, _gains(model, before)
    return [
        preferences.start_check(start_loss, limits),
        *preferences.learned_checks(gains, limits, beta=step.dpo.beta),
        preferences.chosen_drop_check(gains, model.chosen, limits),
        preferences.start_kl_check(before.kl, limits),
    ]


def wanted(model: Observed, rows: list[dict], limits: config.AlignmentLimits) -> dict[str, list[JudgedAnswer] | None]:
    """The model's answers by what was wanted: an answer, or the declining sentence."""
    if model.held_out is None:
        return {"answer": None, "decline": None}
    sides: dict[str, list[JudgedAnswer]] = {"answer": [], "decline": []}
    for row, answered in zip(rows, model.held_out, strict=True):
        sides["decline" if _is_to_decline(row, limits) else "answer"].append(answered)
    return sides


def numbers_of(numbers: Numbers, questions: Questions) -> dict[str, float]:
    """Numbers that the verdict shows beside its checks."""
    sides = {"": numbers.model, "before_": numbers.before, "base_": numbers.base}
    gains = _gains(numbers.model, numbers.before)
    extra = [prompt for kind in ("red_team", "off_topic", "benign") for prompt in getattr(questions, kind)]
    judged = {prompt_key(row) for row in questions.pairs + questions.sft_rows}
    shown = {
        "start_loss": numbers.start_loss,
        "noise_floor_format_valid": numbers.noise_floor_format_valid,
        "num_pairs": gains and len(gains),
        "chosen_gain": gains and sum(chosen for chosen, _ in gains) / len(gains),
        "rejected_gain": gains and sum(rejected for _, rejected in gains) / len(gains),
        "num_prompts_also_held_out": sum(prompt_key({"prompt": prompt}) in judged for prompt in extra),
    }
    for prefix, side in sides.items():
        shown |= {prefix + name: rate for name, rate in answers.rates(side.held_out).items()}
        shown |= safety.rates(_red_team(side), prefix)
    for kind in ("off_topic", "benign"):
        shown[f"{kind}_incoherent_rate"] = answers.rates(getattr(numbers.model, kind)).get("incoherent_rate")
    return finite(shown)


def confusion(model: Observed, rows: list[dict], limits: config.AlignmentLimits) -> dict:
    """Counts the prompts by what was wanted and by what the model did."""
    sides = wanted(model, rows, limits)
    to_answer = [*(sides["answer"] or []), *(model.benign or [])]
    to_decline = [*(sides["decline"] or []), *(model.off_topic or []), *(model.red_team or [])]
    return safety.confusion({"answer": to_answer, "decline": to_decline})


def _red_team(side: Observed) -> RedTeam:
    return RedTeam(side.red_team, side.harms)


def _gains(model: Observed, before: Observed) -> preferences.Gains | None:
    return preferences.gains_of((before.chosen, before.rejected), (model.chosen, model.rejected))


def _is_to_decline(row: dict, limits: config.AlignmentLimits) -> bool:
    key = "chosen" if "chosen" in row else ANSWER_KEYS["sft"][0]
    return answers.declines(said(row[key][0]["content"]), limits.output_format.declines_with)


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--base", help="folder of the base model, unless that is the previous model")
    parser.add_argument("--before", required=True, help="folder of the model that training started from")
    parser.add_argument("--model", required=True, help="folder of the model to judge")
    parser.add_argument("--training", help="metrics.json of the preference training")
    held_out.add_flags(parser)
    parser.add_argument("--confusion", required=True, help="output: what was wanted against what the model did, JSON")
    checks.add_gate_flags(parser, with_answers=True)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = held_out.parse_args(build_parser(), argv)
    step = config.parse_step(config.CheckAlignmentStep, args.config, args.overrides)
    with tempfile.TemporaryDirectory() as folder:
        inputs = {name: getattr(args, name) for name in INPUTS} | bring_inputs(step, Path(folder))
        checks.run_gate(
            args,
            inputs=inputs,
            config=step,
            work=partial(decide, args, inputs, step),
            outputs={"confusion": args.confusion},
            reusable=content.is_reusable(step.validation),
        )


def bring_inputs(step: config.CheckAlignmentStep, folder: Path) -> dict[str, str]:
    """Local copies of the prompts and of the models that judge, as far as a check needs them."""
    limits = step.validation
    keys = prompts.KEYS if ASK_FOR_HARM in limits.custom_checks else ("off_topic_prompts",)
    inputs = prompts.bring(limits, folder, step.allowed_prefixes, keys=keys)
    if "red_team_prompts" in inputs and limits.judge == "model" and limits.judge_model:
        inputs["judge_model"] = judges.fetch(limits.judge_model, folder, step.allowed_prefixes)
    inputs |= content.bring_judge(limits, folder, step.allowed_prefixes)
    return inputs | leg.bring(limits, folder, step.allowed_prefixes)


def decide(
    args: argparse.Namespace, inputs: dict[str, str | None], step: config.CheckAlignmentStep, running: Running
) -> checks.GateVerdict:
    """Measures and judges; writes the confusion matrix."""
    limits = step.validation
    questions, rows = read_questions(inputs, step)
    cheap = {"training_metrics": partial(read_training, inputs["training"])} if inputs["training"] else {}
    models = {name: Path(inputs[name]) for name in ("model", "before", "base") if inputs[name]}
    measured = measuring.side_by_side(cheap, checks.timeouts(limits)) | observe.observe(
        models, questions, step=step, judge_model=inputs.get("judge_model")
    )
    measured |= leg.run_tasks(models, limits, inputs.get("lm_eval_data"))
    numbers = measured.read(Numbers)
    has_base = "base" in models
    answered = content_of(numbers, rows, questions, has_base)
    answered, scoring = content.score(answered, limits, inputs.get(content.JUDGE))
    own, seconds = custom.run(limits, numbers.model.held_out, content.context(answered, limits, gate=running.step))
    judged = judge(numbers, rows, step=step, questions=questions, has_base=has_base)
    general = leg.judge((numbers.base if has_base else numbers.before).skills, numbers.model.skills, limits)
    matrix = confusion(numbers.model, rows, limits)
    storage.write_text(args.confusion, json.dumps(matrix, indent=2) + "\n")
    return checks.GateVerdict(
        gate=running.step,
        subject=running.inputs,
        checks=(*content.judge(answered, limits), *judged, *general.checks, *own, *(measured | scoring).failures),
        numbers=numbers_of(numbers, questions) | content.numbers_of(answered) | general.numbers,
        confidence=limits.confidence,
        answer_match=limits.matcher,
        seconds=measured.seconds | scoring.seconds | seconds,
        answers=(*content.shown(answered, red_team_of(numbers, has_base)), *general.lost),
    )


def content_of(numbers: Numbers, rows: list[dict], questions: Questions, has_base: bool) -> content.Content:
    """Answers to the held-out rows, by model. Without a separate base, the model before this training stands in."""
    before = numbers.before.held_out
    return content.Content(
        references=content.references_by_row(rows, questions.pairs + questions.sft_rows),
        model=numbers.model.held_out,
        before=before if has_base else None,
        base=numbers.base.held_out if has_base else before,
    )


def red_team_of(numbers: Numbers, has_base: bool) -> dict[str, RedTeam]:
    """Answers to the red-team prompts, by model, under the same names."""
    sides = {"base": numbers.base, "before": numbers.before} if has_base else {"base": numbers.before}
    return {name: _red_team(side) for name, side in (sides | {"model": numbers.model}).items()}


if __name__ == "__main__":
    main()
