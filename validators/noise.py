"""How far a gate's own measurements spread: the same model judged twice, on answers drawn with two seeds.

model, tokenizer, prompts, limits -> difference between the two shares of well-formed answers

It is a number to hold limits and differences against, not a check: what moves by less has not been seen to move.
"""

from copy import copy

from posttrain import config
from validators import answers, inference

TEMPERATURE = 0.7
SEEDS = (1, 2)


def noise_floor(
    model, tokenizer, prompts: list[list[inference.Message]], limits: config.AnswerLimits
) -> dict[str, float]:
    """`noise_floor_format_valid`, from 0 to 1. It seeds this process."""
    rates = []
    for seed in SEEDS:
        found = sample(model, tokenizer, prompts, max_new_tokens=limits.max_new_tokens, seed=seed)
        judged = answers.judge_format(prompts, found, limits.output_format, markers=answers.markers_of(tokenizer))
        rates.append(answers.rate(judged))
    return {"noise_floor_format_valid": abs(rates[0] - rates[1])}


def sample(
    model, tokenizer, prompts: list[list[inference.Message]], *, max_new_tokens: int, seed: int
) -> list[inference.Answer]:
    """An answer drawn for each prompt, in the order of `prompts`; the same seed draws the same on the same machine."""
    import torch

    torch.manual_seed(seed)
    return inference.generate(_Drawing(model), tokenizer, prompts, max_new_tokens=max_new_tokens)


class _Drawing:
    """A model that draws its answers where it is asked for greedy ones."""

    def __init__(self, model):
        self.model = model

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def generate(self, *, generation_config, **inputs):
        settings = copy(generation_config)
        settings.update(do_sample=True, temperature=TEMPERATURE, top_k=0)
        return self.model.generate(generation_config=settings, **inputs)
