"""Measures a gate's own noise: judges the same model twice, on answers sampled with two seeds.

model, tokenizer, prompts, limits -> difference between the two shares of well-formed answers

It is a number to compare limits and differences with, not a check: a smaller change cannot be told from noise.
"""

from posttrain import config
from validators import answers, inference

TEMPERATURE = 0.7
SEEDS = (1, 2)


def noise_floor(
    model, tokenizer, prompts: list[list[inference.Message]], limits: config.AnswerLimits
) -> dict[str, float]:
    """`noise_floor_format_valid`, from 0 to 1. Seeds torch in this process."""
    rates = []
    for seed in SEEDS:
        sampled = sample(model, tokenizer, prompts, max_new_tokens=limits.max_new_tokens, seed=seed)
        judged = answers.judge_format(prompts, sampled, limits.output_format, markers=answers.markers_of(tokenizer))
        rates.append(answers.rate(judged))
    return {"noise_floor_format_valid": abs(rates[0] - rates[1])}


def sample(
    model, tokenizer, prompts: list[list[inference.Message]], *, max_new_tokens: int, seed: int
) -> list[inference.Answer]:
    """A sampled answer to each prompt, in the order of `prompts`; reproducible by seed on the same machine."""
    sampling = inference.SamplingParams(temperature=TEMPERATURE, seed=seed)
    return inference.sample(model, tokenizer, prompts, sampling, max_new_tokens=max_new_tokens)
