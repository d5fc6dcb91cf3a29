import math
from pathlib import Path

import pytest

from posttrain import inference
from posttrain.backend import load_model, load_tokenizer
from posttrain.data import render


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path):
    return load_tokenizer(tiny_model)


@pytest.fixture(scope="module")
def model(tiny_model: Path):
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def prompts(task_api_rows: dict) -> list[list[dict]]:
    return [row["prompt"] for row in task_api_rows["sft"][:12]]


def test_answers_do_not_depend_on_the_batch_and_keep_their_order(model, tokenizer, prompts):
    alone = [inference.generate(model, tokenizer, [prompt], max_new_tokens=8)[0] for prompt in prompts]
    assert inference.generate(model, tokenizer, prompts, max_new_tokens=8, batch_size=5) == alone
    assert len({answer.text for answer in alone}) > 1
    assert all(answer.num_tokens == 8 for answer in alone if not answer.stopped)


def test_no_prompts_give_no_answers(model, tokenizer):
    assert inference.generate(model, tokenizer, [], max_new_tokens=8) == []


def test_an_answer_ends_before_its_end_token(model, tokenizer, prompts):
    import torch

    first = inference.generate(model, tokenizer, prompts[:1], max_new_tokens=8)[0]
    prompt = torch.tensor([render(tokenizer, prompts[0])])
    with torch.no_grad():
        next_id = model(prompt).logits[0, -1].argmax().item()
    original = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [original, next_id]
    try:
        stopped = inference.generate(model, tokenizer, prompts[:1], max_new_tokens=8)[0]
    finally:
        model.generation_config.eos_token_id = original
    assert not first.stopped
    assert stopped == inference.Answer(text="", stopped=True, num_tokens=0)


def test_the_models_own_sampling_settings_are_not_used(model, tokenizer, prompts, recwarn):
    greedy = inference.generate(model, tokenizer, prompts, max_new_tokens=8)
    changed = {"do_sample": True, "temperature": 5.0, "top_p": 0.9, "repetition_penalty": 9.0}
    original = {name: getattr(model.generation_config, name) for name in changed}
    model.generation_config.update(**changed)
    try:
        assert inference.generate(model, tokenizer, prompts, max_new_tokens=8) == greedy
    finally:
        model.generation_config.update(**original)


def test_log_probabilities_are_the_loss_of_training(model, tokenizer, task_api_rows):
    import torch

    rows = inference.token_rows(tokenizer, task_api_rows["preferences"][:9], "chosen", max_length=256)
    found = inference.sequence_logprobs(model, tokenizer, rows, batch_size=4)
    for row, (total, num) in zip(rows, found, strict=True):
        ids = torch.tensor([row.prompt + row.completion])
        labels = ids.clone()
        labels[0, : len(row.prompt)] = -100
        with torch.no_grad():
            loss = model(input_ids=ids, labels=labels).loss.item()
        assert num == len(row.completion)
        assert -total / num == pytest.approx(loss, rel=1e-5)
    expected = -sum(total for total, _ in found) / sum(num for _, num in found)
    assert inference.mean_loss(found) == pytest.approx(expected)


def test_token_rows_hold_the_end_of_turn_and_leave_long_rows_out(tokenizer, task_api_rows):
    rows = task_api_rows["sft"]
    found = inference.token_rows(tokenizer, rows, "completion", max_length=256)
    assert len(found) == len(rows)
    assert all(tokenizer.eos_token_id in row.completion for row in found)
    assert tokenizer.decode(found[0].completion).startswith(rows[0]["completion"][0]["content"])
    limit = len(found[0])
    assert all(len(row) <= limit for row in inference.token_rows(tokenizer, rows, "completion", max_length=limit))


def test_no_tokens_are_no_loss():
    assert math.isnan(inference.mean_loss([]))


def test_the_model_keeps_its_mode(model, tokenizer, prompts):
    model.train()
    try:
        inference.generate(model, tokenizer, prompts[:1], max_new_tokens=1)
        assert model.training
    finally:
        model.eval()
