"""Gate check_export: does each exported file answer in its own engine as well as the merged model does in transformers?

model folder, folder of exported files, held-out rows -> verdict, both models' answers

    <format>_drop           by how much answers are less often right, row by row
    <format>_stop_drop      by how much fewer of them stop by themselves
    <format>_loss_rise      in place of _drop where nobody judges answers (`answer_match: none`): nats per token
    <format>_prompts        chat template and tokenizer in the file make the tokens that the model was trained on
    <format>_chat           the OpenAI-compatible endpoint says what the file says, and that the answer stopped
    <format>_tool_call      it returns a tool call as one, if an answer is a call of a tool that its prompt offers

The last three are of GGUF files: an FP8 folder has the model's own tokenizer and template.

    python -m validators.export --step check_export --storage-root DIR --model DIR --export DIR --sft-eval rows.jsonl
        --preference-eval pairs.jsonl --verdict verdict.json --report report.html --summary summary.md
        --answers answers.jsonl --metrics metrics.json --passed passed
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from posttrain import config
from posttrain.config import AnswerLimits, CheckExportStep, Export
from posttrain.config.serving import GGUF
from posttrain.rows import chat
from posttrain.serving import formats
from posttrain.step import kfp_io
from posttrain.step.running import Running
from posttrain.verdict import Check, finite, none_wrong
from validators import (
    answers,
    checks,
    content,
    held_out,
    inference,
    intervals,
    llama_cpp,
    measuring,
    paired,
    serving,
    vllm,
)
from validators.answers import JudgedAnswer
from validators.inference import TokenRow
from validators.matching import pairwise
from validators.session import NO_ROW_FITS, Session

INPUTS = ("model", "export", *held_out.KINDS)
NUM_LIKELIEST = 100  # tokens whose log-probabilities an engine is asked for; a rarer one counts as the last of them
MAX_TOKENS = 2048  # of answers whose loss is measured, over all rows: one request to llama.cpp for each
LOOK = "Leave the format out of export.formats, or choose one with more bits"
CONVERT = "Leave the format out of export.formats, and report it with the model's name."

Losses = list[tuple[float, int]]  # of each row's answer: sum in nats, number of tokens


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Numbers that a judgement needs, by format; None or a missing format: not asked, or could not be measured."""

    model_answers: list[JudgedAnswer] | None = None
    model_losses: Losses | None = None
    answers: dict[str, list[JudgedAnswer]] = field(default_factory=dict)
    losses: dict[str, Losses] = field(default_factory=dict)
    prompts: dict[str, list[str]] = field(default_factory=dict)  # faults
    chat: dict[str, list[str]] = field(default_factory=dict)
    tool_call: dict[str, list[str]] = field(default_factory=dict)


class Measurer:
    """Asks the merged model, then each file, in one process."""

    def __init__(self, model: Path, export: Path, step: CheckExportStep, rows: dict[str, list[dict]]):
        self.model, self.export, self.step, self.rows = model, export, step, rows
        self.session = Session(step.validation)
        self.asked = answers.choose_rows(held_out.all_of(rows), step.validation.num_generated_answers)
        self.prompts = [row["prompt"] for row in self.asked]
        self.tokenizer: Any = None
        self.ends: list[int] = []
        self.rendered: list[list[int]] = []
        self.token_rows: list[TokenRow] = []
        self.server: llama_cpp.Server | None = None

    def parts(self) -> measuring.Parts:
        """The measurements, in their order."""
        is_unjudged = self.step.validation.matcher == "none"
        parts: measuring.Parts = {"model_loads": self.load_model, "model_answers_generated": self.model_answers}
        if is_unjudged:
            parts["model_loss_measured"] = self.model_losses
        for kind in self.step.export.formats:
            measure = self.gguf_parts(kind, is_unjudged) if kind in GGUF else self.fp8_parts(kind, is_unjudged)
            parts |= {f"{kind}_{name}": part for name, part in measure.items()}
        return parts

    def load_model(self) -> None:
        self.session.load(self.model)
        self.tokenizer = self.session.tokenizer
        self.ends = inference.end_token_ids(self.session.model, self.tokenizer)
        self.rendered = [chat.render(self.tokenizer, prompt) for prompt in self.prompts]

    def model_answers(self) -> dict[str, Any]:
        return {"model_answers": self.session.answer(self.prompts)}

    def model_losses(self) -> dict[str, Any]:
        self.token_rows = list(self.rows_within())
        if not self.token_rows:
            raise ValueError(NO_ROW_FITS.format(sum(map(len, self.rows.values())), "held-out rows", "max_seq_length"))
        likeliest = inference.most_likely(self.session.model, self.tokenizer, self.token_rows, num=NUM_LIKELIEST)
        tables = (
            [dict(zip(ids.tolist(), logprobs.tolist(), strict=True)) for ids, logprobs in zip(*one, strict=True)]
            for one in likeliest
        )
        pairs = zip(tables, self.token_rows, strict=True)
        return {"model_losses": [loss(table, row.completion) for table, row in pairs]}

    def rows_within(self) -> Iterator[TokenRow]:
        """Yields the first held-out answers, of `MAX_TOKENS` in all."""
        num_tokens = 0
        for kind, key, section in (
            ("sft_eval", "completion", self.step.sft), ("preference_eval", "chosen", self.step.dpo),
        ):  # fmt: skip
            for row in inference.token_rows(self.tokenizer, self.rows[kind], key, max_length=section.max_seq_length):
                num_tokens += len(row.completion)
                if num_tokens > MAX_TOKENS:
                    return
                yield row

    def gguf_parts(self, kind: str, is_unjudged: bool) -> measuring.Parts:
        """The measurements of one GGUF file."""
        parts: measuring.Parts = {"loads": partial(self.serve, kind), "prompts_compared": partial(self.compare, kind)}
        parts["answers_generated"] = partial(self.gguf_answers, kind)
        if is_unjudged:
            parts["loss_measured"] = partial(self.gguf_losses, kind)
        return parts

    def serve(self, kind: str) -> None:
        """Starts the server, in place of whatever was loaded before."""
        self.session.free()
        if self.server:
            self.server.close()
        longest = max(map(len, self.rendered)) + self.step.validation.max_new_tokens
        longest = max([longest, *map(len, self.token_rows)])
        self.server = llama_cpp.Server(formats.path_of(self.export, kind), context=longest + 8)

    def compare(self, kind: str) -> dict[str, Any]:
        return {"prompts": {kind: serving.prompt_faults(self.server, self.tokenizer, self.prompts, self.rendered)}}

    def gguf_answers(self, kind: str) -> dict[str, Any]:
        """The answers, and whether the chat endpoint gives the same and takes a tool call."""
        limit = self.step.validation.max_new_tokens
        written = self.server.generate(self.tokenizer, self.rendered, max_new_tokens=limit, name=kind)
        asked = (self.server, self.tokenizer, self.prompts, written)
        numbers = {"answers": {kind: self.judged(written)}, "chat": {kind: serving.chat_faults(*asked, limit=limit)}}
        if (faults := serving.call_faults(*asked, limit=limit)) is not None:
            numbers["tool_call"] = {kind: faults}
        return numbers

    def gguf_losses(self, kind: str) -> dict[str, Any]:
        losses = []
        for row in self.token_rows:
            starts = [row.prompt + row.completion[:at] for at in range(len(row.completion))]
            losses.append(loss([self.server.likeliest(ids, num=NUM_LIKELIEST) for ids in starts], row.completion))
        return {"losses": {kind: losses}}

    def fp8_parts(self, kind: str, is_unjudged: bool) -> measuring.Parts:
        """The measurements of an FP8 folder, in vLLM."""
        parts: measuring.Parts = {"loads": partial(self.load_engine, kind)}
        parts["answers_generated"] = partial(self.engine_answers, kind)
        if is_unjudged:
            parts["loss_measured"] = partial(self.engine_losses, kind)
        return parts

    def load_engine(self, kind: str) -> None:
        self.session.free()
        self.engine = vllm.Engine(formats.path_of(self.export, kind), num_likeliest=NUM_LIKELIEST)

    def engine_answers(self, kind: str) -> dict[str, Any]:
        limit = self.step.validation.max_new_tokens
        written = self.engine.generate_from_tokens(self.tokenizer, self.rendered, self.ends, max_new_tokens=limit)
        return {"answers": {kind: self.judged(written)}}

    def engine_losses(self, kind: str) -> dict[str, Any]:
        tables = self.engine.likeliest(self.token_rows, num=NUM_LIKELIEST)
        pairs = zip(tables, self.token_rows, strict=True)
        return {"losses": {kind: [loss(table, row.completion) for table, row in pairs]}}

    def judged(self, written: list[inference.Answer]) -> list[JudgedAnswer]:
        markers = answers.markers_of(self.tokenizer)
        return answers.judge_format(self.prompts, written, self.step.validation.output_format, markers=markers)


def loss(likeliest: list[dict[int, float]], tokens: list[int]) -> tuple[float, int]:
    """The loss of an answer in nats, of which only the likeliest tokens at each position are known."""
    pairs = zip(likeliest, tokens, strict=True)
    return -sum(table.get(token, min(table.values())) for table, token in pairs), len(tokens)


def judge(numbers: Numbers, kind: str, answered: content.Content, step: CheckExportStep) -> list[Check]:
    """Pure: the same numbers and limits give the same checks. Those of one format."""
    limits, export = step.validation, step.export
    judged = [stop_check(numbers.model_answers, numbers.answers.get(kind), kind, limits, export)]
    if limits.matcher == "none":
        judged.append(loss_check(numbers.model_losses, numbers.losses.get(kind), kind, limits, export))
    else:
        judged.append(drop_check(answered, kind, limits, export))
    if limits.matcher == "judge":
        judged.append(pairwise.discerning_check(answered.scores_of_wrong, confidence=limits.confidence))
    if kind in GGUF:
        judged.append(none_wrong(f"{kind}_prompts", numbers.prompts.get(kind), CONVERT))
        judged.append(none_wrong(f"{kind}_chat", numbers.chat.get(kind), CONVERT))
    if kind in numbers.tool_call:
        judged.append(none_wrong(f"{kind}_tool_call", numbers.tool_call[kind], CONVERT))
    return judged


def drop_check(answered: content.Content, kind: str, limits: AnswerLimits, export: Export) -> Check:
    """By how much the answers are less often right than the merged model's, row by row."""
    return paired.paired_difference(
        f"{kind}_drop", answered.scores.get("before"), answered.scores.get("model"), "<=", export.max_export_drop,
        confidence=limits.confidence, detail="below the merged model",
        more_rows_by=answers.more_answers(answered.model, limits), remedy=f"{LOOK}.",
    )  # fmt: skip


def stop_check(
    model: list[JudgedAnswer] | None, served: list[JudgedAnswer] | None, kind: str, limits: AnswerLimits, export: Export
) -> Check:
    """By how much fewer answers stop by themselves than of the merged model, row by row."""
    stopped = [some and [float(one.answer.stopped) for one in some] for some in (model, served)]
    return paired.paired_difference(
        f"{kind}_stop_drop", *stopped, "<=", export.max_export_drop, confidence=limits.confidence,
        detail=f"answers that stop within {limits.max_new_tokens} tokens, below the merged model",
        more_rows_by=answers.more_answers(served, limits), remedy=f"{LOOK}.",
    )  # fmt: skip


def loss_check(model: Losses | None, served: Losses | None, kind: str, limits: AnswerLimits, export: Export) -> Check:
    """By how much the held-out loss lies above the merged model's, row by row."""
    pairs = [*zip(model or [], served or [], strict=False)]
    return intervals.ratio(
        f"{kind}_loss_rise", [ours[0] - theirs[0] for theirs, ours in pairs], [float(theirs[1]) for theirs, _ in pairs],
        "<=", export.max_export_loss_rise, confidence=limits.confidence,
        detail="nats per token above the merged model; nobody judges the content of answers", remedy=f"{LOOK}.",
    )  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--model", required=True, help="folder of the merged model")
    parser.add_argument("--export", required=True, help="folder of the exported files")
    held_out.add_flags(parser)
    checks.add_gate_flags(parser, with_answers=True)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = held_out.parse_args(build_parser(), argv)
    step = config.parse_step(CheckExportStep, args.config, args.overrides)
    formats.check_installed(step.export)
    inputs = {name: getattr(args, name) for name in INPUTS}
    with tempfile.TemporaryDirectory() as folder:
        inputs |= content.bring_judge(step.validation, Path(folder), step.allowed_prefixes)
        work = partial(decide, inputs, step)
        checks.run_gate(args, inputs=inputs, config=step, work=work, reusable=content.is_reusable(step.validation))


def decide(inputs: dict[str, str | None], step: CheckExportStep, running: Running) -> checks.GateVerdict:
    """Asks the merged model and every file, and judges."""
    limits, model = step.validation, Path(inputs["model"])
    rows = held_out.read(inputs, step, model)
    measurer = Measurer(model, Path(inputs["export"]), step, rows)
    measured = measuring.in_order(measurer.parts(), checks.timeouts(limits))
    numbers = measured.read(Numbers)
    references = content.references_by_row(measurer.asked, held_out.all_of(rows))
    judged, scored, failures, seconds = [], [], list(measured.failures), dict(measured.seconds)
    for kind in step.export.formats:
        asked = content.Content(references=references, model=numbers.answers.get(kind), before=numbers.model_answers)
        answered, scoring = content.score(asked, limits, inputs.get(content.JUDGE))
        judged += judge(numbers, kind, answered, step)
        scored.append(answered)
        failures += scoring.failures
        seconds |= scoring.seconds
    return checks.GateVerdict(
        gate=running.step, subject=running.inputs, checks=(*judged, *failures),
        numbers=numbers_of(dict(zip(step.export.formats, scored, strict=True))), confidence=limits.confidence,
        answer_match=limits.matcher, seconds=seconds, answers=content.shown(scored[-1]),
    )  # fmt: skip


def numbers_of(answered: dict[str, content.Content]) -> dict[str, float]:
    """Numbers that the verdict shows beside its checks, by format; `before_` is the merged model's."""
    shown: dict[str, float | None] = {}
    for kind, one in answered.items():
        shown |= {f"before_{name}": rate for name, rate in answers.rates(one.before).items()}
        shown |= {f"{kind}_{name}": rate for name, rate in answers.rates(one.model).items()}
        means = content.numbers_of(one)
        shown |= {f"{kind}_answer_accuracy": means.get("answer_accuracy")}
        if (before := means.get("before_answer_accuracy")) is not None:  # a format may not have been measured
            shown["before_answer_accuracy"] = before
        if one.model and one.before:
            pairs = [*zip(one.model, one.before, strict=True)]
            shown[f"{kind}_same_answers"] = sum(a.answer.text == b.answer.text for a, b in pairs) / len(pairs)
    return finite(shown)


if __name__ == "__main__":
    main()
