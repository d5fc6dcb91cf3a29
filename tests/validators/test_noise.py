import pytest

from examples.task_api.generate import DECLINE
from posttrain.config import OutputFormat, SftLimits
from posttrain.rows import chat
from posttrain.train import backend
from validators import noise
from validators.answers import choose_prompts

LIMITS = SftLimits(max_new_tokens=12, output_format=OutputFormat(kind="tool_call", declines_with=DECLINE))


@pytest.fixture(scope="module")
def prompts(declining_rows) -> list:
    return choose_prompts(declining_rows, 4)


def test_the_same_seed_draws_the_same_answers_and_another_draws_others(untaught, prompts):
    model, tokenizer = backend.load_model(untaught), chat.load_tokenizer(untaught)
    first, again, other = (noise.sample(model, tokenizer, prompts, max_new_tokens=12, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == len(prompts)


def test_a_model_that_always_answers_well_has_no_noise(untaught, declining_adapter, prompts):
    model, tokenizer = backend.load_model(untaught, declining_adapter), chat.load_tokenizer(untaught)
    assert noise.noise_floor(model, tokenizer, prompts, LIMITS) == {"noise_floor_format_valid": 0.0}


def test_it_is_the_difference_of_two_shares(untaught, prompts, monkeypatch):
    drawn = iter([["x", "x", "x", DECLINE], ["x", DECLINE, DECLINE, DECLINE]])

    seeds = set()

    def sample(*_, seed, **settings):
        seeds.add(seed)
        return [noise.inference.Answer(text, True, 1) for text in next(drawn)]

    monkeypatch.setattr(noise, "sample", sample)
    floor = noise.noise_floor(None, chat.load_tokenizer(untaught), prompts, LIMITS)
    assert floor == {"noise_floor_format_valid": 0.5} and len(seeds) == 2
