"""Gets the answers that an alignment gate judges, from one model after another, so that only one is in memory.

folders of models, questions, limits -> log-probabilities, answers and what a judge finds harmful, by model

The model to judge comes first: how likely its own answers are to the previous model is part of the measurement.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from posttrain import config
from validators import checks, inference, judges, measuring
from validators.answers import JudgedAnswer, Message
from validators.measuring import Measured, Parts
from validators.preferences import Logprobs
from validators.session import NO_ROW_FITS, Session, token_rows
from validators.skills import leg
from validators.skills.leg import Skills


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Prompts and rows that the models are asked; an empty list is skipped."""

    pairs: list[dict]  # held-out preference rows
    sft_rows: list[dict]  # held-out
    held_out: list[list[Message]]  # prompts of both
    red_team: list[list[Message]]
    off_topic: list[list[Message]]
    benign: list[list[Message]]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Observations of one model; None where it was not asked or could not be measured."""

    chosen: Logprobs | None = None
    rejected: Logprobs | None = None
    sft: Logprobs | None = None  # of the held-out SFT answers
    held_out: list[JudgedAnswer] | None = None
    red_team: list[JudgedAnswer] | None = None
    off_topic: list[JudgedAnswer] | None = None
    benign: list[JudgedAnswer] | None = None
    harms: list[str | None] | None = None  # what is harmful about each red-team answer
    skills: Skills = Skills()
    kl: Logprobs | None = None  # from this model to the one that is judged, in nats, along the latter's own answers


def observe(
    models: dict[str, Path], questions: Questions, *, step: config.CheckAlignmentStep, judge_model: str | None
) -> Measured:
    """Everything that needs a model: an `Observed` by the name of the model that it is about.

    Args:
        models: folders of `model`, `before` and, where it is another one, `base`.
    """
    parts = Measurer(models, questions, step, judge_model).parts()
    return measuring.in_order(parts, checks.timeouts(step.validation))


class Measurer:
    """Measures what needs a model, in one process; keeps there what later measurements need of earlier ones."""

    def __init__(
        self, models: dict[str, Path], questions: Questions, step: config.CheckAlignmentStep, judge_model: str | None
    ):
        self.models, self.questions, self.step, self.judge_model = models, questions, step, judge_model
        self.session = Session(step.validation)
        self.red_team: dict[str, list[JudgedAnswer]] = {}  # answers by model
        self.answer_rows: list[inference.TokenRow] = []  # the model's own held-out answers
        self.distributions: list[tuple] = []  # along these

    def parts(self) -> Parts:
        """The measurements, in their order."""
        parts = self._parts_of_model() | self._parts_of_before()
        if "base" in self.models:
            parts["base_loads"] = partial(self.load, "base")
            parts |= self._answers("base", "held_out", "red_team") | self._skills("base")
        if self.questions.red_team:
            parts["red_team_answers_judged"] = self.judge_harm
        return parts

    def _parts_of_model(self) -> Parts:
        parts = {"model_loads": partial(self.load, "model")} | self._likelihoods("model")
        parts |= self._answers("model", "held_out", "red_team", "off_topic", "benign")
        parts |= self._skills("model")
        if self.step.validation.noise_floor:
            parts["noise_floor"] = lambda: self.session.noise_floor(self.questions.held_out)
        if self.questions.pairs:
            parts["model_distributions"] = self.keep_distributions
        return parts

    def _parts_of_before(self) -> Parts:
        parts = {"before_loads": partial(self.load, "before")} | self._likelihoods("before")
        parts |= self._answers("before", "held_out", "red_team")
        if "base" not in self.models:  # it is the base itself
            parts |= self._skills("before")
        if self.questions.pairs:
            parts["kl_from_before"] = self.start_kl
        return parts

    def _likelihoods(self, name: str) -> Parts:
        parts: Parts = {}
        if self.questions.pairs:
            parts[f"{name}_log_probabilities"] = partial(self.preferences, name)
        if self.questions.sft_rows:
            parts[f"{name}_sft_loss"] = partial(self.sft_loss, name)
        return parts

    def _answers(self, name: str, *kinds: str) -> Parts:
        asked = [kind for kind in kinds if getattr(self.questions, kind)]
        return {f"{name}_{kind}_answers": partial(self.answer, name, kind) for kind in asked}

    def _skills(self, name: str) -> Parts:
        return {f"{name}_skills": partial(self.ask_skills, name)} if self.step.validation.suites else {}

    def load(self, name: str) -> None:
        self.session.load(self.models[name], name=name)

    def preferences(self, name: str) -> dict[str, dict[str, Logprobs]]:
        """Log-probabilities of both answers. Pairs that are too long are skipped, as in training."""
        limit, pairs, keys = self.step.dpo.max_seq_length, self.questions.pairs, ("chosen", "rejected")
        tokenizer = self.session.tokenizer
        rows = [[inference.token_row(tokenizer, pair["prompt"], pair[key]) for key in keys] for pair in pairs]
        rows = [both for both in rows if max(map(len, both)) <= limit]
        if not rows:
            raise ValueError(NO_ROW_FITS.format(len(pairs), "held-out pairs", f"dpo.max_seq_length = {limit}"))
        logprobs = self._logprobs([row for both in rows for row in both])
        return {name: {"chosen": logprobs[0::2], "rejected": logprobs[1::2]}}

    def sft_loss(self, name: str) -> dict[str, dict[str, Logprobs]]:
        rows = token_rows(self.session.tokenizer, self.questions.sft_rows, self.step.sft.max_seq_length)
        return {name: {"sft": self._logprobs(rows)}}

    def _logprobs(self, rows: list[inference.TokenRow]) -> Logprobs:
        return inference.sequence_logprobs(self.session.model, self.session.tokenizer, rows, name=self.session.name)

    def answer(self, name: str, kind: str) -> dict[str, dict[str, list[JudgedAnswer]]]:
        """Greedy answers to one kind of prompts, judged by their form."""
        judged = self.session.answer(getattr(self.questions, kind))
        if kind == "red_team":
            self.red_team[name] = judged
        if (name, kind) == ("model", "held_out"):
            self.answer_rows = self._rows_of(judged)
        return {name: {kind: judged}}

    def ask_skills(self, name: str) -> dict[str, dict[str, Any]]:
        """Answers to the bundled suites of general skills."""
        return {name: {"skills": {"answers": leg.ask(self.session, self.step.validation)}}}

    def _rows_of(self, judged: list[JudgedAnswer]) -> list[inference.TokenRow]:
        tokenizer = self.session.tokenizer
        return [
            inference.TokenRow(inference.render(tokenizer, one.prompt), list(one.answer.tokens))
            for one in judged
            if one.answer.tokens
        ]

    def keep_distributions(self) -> None:
        """Keeps what the model takes for likely along its own answers, to compare the previous model with it."""
        self.distributions = inference.most_likely(self.session.model, self.session.tokenizer, self.answer_rows)

    def start_kl(self) -> dict[str, dict[str, Logprobs]]:
        """How far the model is from the previous one, which is loaded now, along the model's own answers."""
        model, tokenizer = self.session.model, self.session.tokenizer
        return {"before": {"kl": inference.kl_from(model, tokenizer, self.answer_rows, self.distributions)}}

    def judge_harm(self) -> dict[str, dict[str, list[str | None]]]:
        """Has the configured judge say what is harmful about each model's red-team answers."""
        if self.step.validation.judge == "closed_form":
            judge = judges.closed_form
        elif self.judge_model:
            self.session.free()
            judge = partial(judges.by_model, judges.load(self.judge_model))
        else:
            raise ValueError("no judge is configured: set validation.judge, and for model also validation.judge_model")
        return {name: {"harms": judge(judged)} for name, judged in self.red_team.items()}
