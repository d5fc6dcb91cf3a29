"""Asks models what an alignment gate judges, one after the other in one process: never are two in memory.

folders of models, questions, limits -> log-probabilities, answers and what a judge finds harmful, by model

The model to judge comes first: what the model before says of the new one's own answers is part of the measurement.
"""

import gc
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from posttrain import config
from validators import answers, checks, inference, judges, measuring, noise, vllm
from validators.answers import JudgedAnswer, Message
from validators.measuring import Measure, Measured
from validators.preferences import Logprobs

NO_ONE_FITS = "none of {} held-out {} has at most max_seq_length {} tokens: raise it"


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What the models are asked. What is empty is not asked."""

    pairs: list[dict]  # held-out preference rows
    sft_rows: list[dict]  # held-out
    held_out: list[list[Message]]  # prompts of both
    red_team: list[list[Message]]
    off_topic: list[list[Message]]
    benign: list[list[Message]]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What one model gave. None: not asked, or could not be measured."""

    chosen: Logprobs | None = None
    rejected: Logprobs | None = None
    sft: Logprobs | None = None  # of the held-out SFT answers
    held_out: list[JudgedAnswer] | None = None
    red_team: list[JudgedAnswer] | None = None
    off_topic: list[JudgedAnswer] | None = None
    benign: list[JudgedAnswer] | None = None
    harms: list[str | None] | None = None  # of the red-team answers: what is harmful about them
    kl: Logprobs | None = None  # nats by which the model differs from this one on the model's own answers


def observe(
    models: dict[str, Path], questions: Questions, *, step: config.CheckAlignmentStep, judge_model: str | None
) -> Measured:
    """Everything that needs a model. Numbers are called `<model>.<field of Observed>`; read them with `observed`.

    Args:
        models: folders of `model`, `before` and, where it is another one, `base`.
    """
    vllm.check_generation(step.validation.generation)
    asker = _Asker(questions, step)
    parts = _parts_of_model(asker, models["model"]) | _parts_of_before(asker, models["before"])
    if "base" in models and questions.red_team:
        parts["base_loads"] = partial(asker.load, models["base"])
        parts["base_red_team_answers"] = partial(asker.answer, "base", "red_team")
    if questions.red_team:
        parts["red_team_answers_judged"] = partial(asker.judge_harm, judge_model)
    return measuring.in_order(parts, checks.timeouts(step.validation))


def observed(measured: Measured, name: str) -> Observed:
    """What was measured of one model."""
    own = {key.partition(".")[2]: value for key, value in measured.numbers.items() if key.startswith(f"{name}.")}
    return TypeAdapter(Observed).validate_python(own)


def _parts_of_model(asker: "_Asker", path: Path) -> dict[str, Measure]:
    questions, limits = asker.questions, asker.step.validation
    parts: dict[str, Measure] = {"model_loads": partial(asker.load, path)} | _likelihoods(asker, "model")
    for kind in ("held_out", "red_team", "off_topic", "benign"):
        if getattr(questions, kind):
            parts[f"model_{kind}_answers"] = partial(asker.answer, "model", kind)
    if limits.noise_floor:
        parts["noise_floor"] = asker.noise_floor
    if questions.pairs:
        parts["model_distributions"] = asker.keep_distributions
    return parts


def _parts_of_before(asker: "_Asker", path: Path) -> dict[str, Measure]:
    parts: dict[str, Measure] = {"before_loads": partial(asker.load, path)} | _likelihoods(asker, "before")
    for kind in ("held_out", "red_team"):
        if getattr(asker.questions, kind):
            parts[f"before_{kind}_answers"] = partial(asker.answer, "before", kind)
    if asker.questions.pairs:
        parts["kl_from_before"] = asker.start_kl
    return parts


def _likelihoods(asker: "_Asker", name: str) -> dict[str, Measure]:
    parts: dict[str, Measure] = {}
    if asker.questions.pairs:
        parts[f"{name}_log_probabilities"] = partial(asker.preferences, name)
    if asker.questions.sft_rows:
        parts[f"{name}_sft_loss"] = partial(asker.sft_loss, name)
    return parts


class _Asker:
    """Lives in the measuring process: the model that is loaded now, and what later parts need of earlier ones."""

    def __init__(self, questions: Questions, step: config.CheckAlignmentStep):
        self.questions, self.step = questions, step
        self.model = self.tokenizer = self.engine = None
        self.given: dict[tuple[str, str], list[JudgedAnswer]] = {}  # by model and kind of question
        self.answer_rows: list[inference.TokenRow] = []  # the model's own held-out answers
        self.distributions: list[tuple] = []

    def load(self, path: Path) -> None:
        from posttrain.train import backend

        self.free()
        self.tokenizer, self.model = backend.load_tokenizer(path), backend.load_model(path)
        if self.step.validation.generation == "vllm":
            self.engine = vllm.Engine(path)

    def free(self) -> None:
        import torch

        self.model = self.tokenizer = self.engine = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def preferences(self, name: str) -> dict[str, Logprobs]:
        """Log-probabilities of both answers; pairs of which one is too long are left out, as in training."""
        limit, pairs, keys = self.step.dpo.max_seq_length, self.questions.pairs, ("chosen", "rejected")
        rows = [[inference.token_row(self.tokenizer, pair["prompt"], pair[key]) for key in keys] for pair in pairs]
        rows = [both for both in rows if max(map(len, both)) <= limit]
        if not rows:
            raise ValueError(NO_ONE_FITS.format(len(pairs), "pairs", limit))
        found = inference.sequence_logprobs(self.model, self.tokenizer, [row for both in rows for row in both])
        return {f"{name}.chosen": found[0::2], f"{name}.rejected": found[1::2]}

    def sft_loss(self, name: str) -> dict[str, Logprobs]:
        limit, rows = self.step.sft.max_seq_length, self.questions.sft_rows
        fitting = inference.token_rows(self.tokenizer, rows, "completion", max_length=limit)
        if not fitting:
            raise ValueError(NO_ONE_FITS.format(len(rows), "SFT rows", limit))
        return {f"{name}.sft": inference.sequence_logprobs(self.model, self.tokenizer, fitting)}

    def answer(self, name: str, kind: str) -> dict[str, list[JudgedAnswer]]:
        """Greedy answers to one kind of prompts, judged by their form."""
        prompts, limits = getattr(self.questions, kind), self.step.validation
        generate = self.engine.generate if self.engine else inference.generate
        found = generate(self.model, self.tokenizer, prompts, max_new_tokens=limits.max_new_tokens)
        markers = answers.markers_of(self.tokenizer)
        judged = answers.judge_format(prompts, found, limits.output_format, markers=markers)
        self.given[name, kind] = judged
        return {f"{name}.{kind}": judged}

    def noise_floor(self) -> dict[str, Any]:
        return noise.noise_floor(self.model, self.tokenizer, self.questions.held_out, self.step.validation)

    def keep_distributions(self) -> None:
        """What the model takes for likely along its own answers; the model before is held against it."""
        given = [one for one in self.given["model", "held_out"] if one.answer.tokens]
        self.answer_rows = [
            inference.TokenRow(inference.render(self.tokenizer, one.prompt), list(one.answer.tokens)) for one in given
        ]
        self.distributions = inference.most_likely(self.model, self.tokenizer, self.answer_rows)

    def start_kl(self) -> dict[str, Logprobs]:
        found = inference.kl_from(self.model, self.tokenizer, self.answer_rows, self.distributions)
        return {"before.kl": found}

    def judge_harm(self, judge_model: str | None) -> dict[str, list[str | None]]:
        """What is harmful about each model's red-team answers, by the judge of the configuration."""
        if self.step.validation.judge == "closed_form":
            judge = judges.closed_form
        elif judge_model:
            self.free()
            judge = partial(judges.by_model, judges.load(judge_model))
        else:
            raise ValueError("there is no judge: set validation.judge, and for a model validation.judge_model")
        return {f"{name}.harms": judge(given) for (name, kind), given in self.given.items() if kind == "red_team"}
