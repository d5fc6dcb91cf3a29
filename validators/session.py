"""One model at a time, loaded in the measuring process, and what a gate asks of it.

model folder (and an adapter's), prompts -> generated answers, judged by their form

A gate's measurements that need a model are the methods of a class of its own, which keeps a session and whatever later
measurements need of earlier ones.
"""

import gc
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from posttrain import config
from posttrain.rows import chat
from validators import answers, inference, noise, vllm
from validators.answers import JudgedAnswer, Message

logger = logging.getLogger(__name__)

NO_ROW_FITS = "none of {} {} is within {} tokens: raise it"


class Session:
    """Holds at most one model. Nothing is loaded before `load`, so that the gate itself may still fork."""

    def __init__(self, limits: config.AnswerLimits):
        vllm.check_generation(limits.generation)
        self.limits = limits
        self.model = self.tokenizer = self.engine = None
        self.name = "model"

    def load(
        self, path: Path, adapter: Path | None = None, *, rank: int = 16, tokenizer: Any = None, name: str = "model"
    ) -> None:
        """Loads a model in place of the one before, with the adapter and the tokenizer that are passed, if any.

        Args:
            name: what the log calls it.
        """
        from posttrain.train import backend

        self.free()
        self.name = name
        self.tokenizer = tokenizer or chat.load_tokenizer(path)
        self.model = backend.load_model(path, adapter)
        if self.limits.generation == "vllm":
            self.engine = vllm.Engine(path, adapter, rank=rank)

    def free(self) -> None:
        """Drops the model and the GPU memory that it took."""
        import torch

        self.model = self.tokenizer = self.engine = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def answer(self, prompts: list[list[Message]]) -> list[JudgedAnswer]:
        """The greedy answer to each prompt, judged by its form."""
        generate = self.engine.generate if self.engine else partial(inference.generate, name=self.name)
        return self._judged(prompts, generate)

    def sample(self, prompts: list[list[Message]], sampling: inference.SamplingParams) -> list[JudgedAnswer]:
        """A sampled answer to each prompt, judged by its form; a prompt may be there several times."""
        draw = self.engine.sample if self.engine else partial(inference.sample, name=self.name)
        return self._judged(prompts, partial(draw, sampling=sampling))

    def answer_without_adapter(self, prompts: list[list[Message]]) -> list[JudgedAnswer]:
        """The base's greedy answer to each prompt, from the loaded model with its adapter switched off."""
        if self.engine:
            return self._judged(prompts, partial(self.engine.generate, with_adapter=False))
        with self.model.disable_adapter():
            return self._judged(prompts, partial(inference.generate, name="base"))

    def _judged(self, prompts: list[list[Message]], generate: Callable) -> list[JudgedAnswer]:
        generated = generate(self.model, self.tokenizer, prompts, max_new_tokens=self.limits.max_new_tokens)
        markers = answers.markers_of(self.tokenizer)
        return answers.judge_format(prompts, generated, self.limits.output_format, markers=markers)

    def noise_floor(self, prompts: list[list[Message]]) -> dict[str, Any]:
        """By how much two samplings of this model differ."""
        return noise.noise_floor(self.model, self.tokenizer, prompts, self.limits)


def token_rows(tokenizer, rows: list[dict], max_length: int) -> list[inference.TokenRow]:
    """The rows that are short enough to be measured on.

    Raises:
        ValueError: no row is short enough.
    """
    fitting = inference.token_rows(tokenizer, rows, "completion", max_length=max_length)
    if not fitting:
        raise ValueError(NO_ROW_FITS.format(len(rows), "held-out SFT rows", f"sft.max_seq_length = {max_length}"))
    return fitting
