import logging
import math
from pathlib import Path

import pytest

from examples.task_api.tiny import CHAT_TEMPLATE
from posttrain.config import OutputFormat
from posttrain.rows.chat import load_tokenizer, render
from posttrain.train import stage
from posttrain.train.backend import load_model
from validators import inference
from validators.answers import judge_format


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
    assert stopped == inference.Answer(text="", stopped=True, num_tokens=0, tokens=(next_id,))


def test_the_models_own_sampling_settings_are_not_used(model, tokenizer, prompts, recwarn):
    greedy = inference.generate(model, tokenizer, prompts, max_new_tokens=8)
    changed = {"do_sample": True, "temperature": 5.0, "top_p": 0.9, "repetition_penalty": 9.0}
    original = {name: getattr(model.generation_config, name) for name in changed}
    model.generation_config.update(**changed)
    try:
        assert inference.generate(model, tokenizer, prompts, max_new_tokens=8) == greedy
    finally:
        model.generation_config.update(**original)


def test_greedy_answers_take_the_likeliest_token_each_time_and_nothing_is_warned_about(
    model, tokenizer, prompts, caplog, monkeypatch
):
    import torch
    from transformers.utils.logging import warning_once

    warning_once.cache_clear()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    ids = list(prompt := render(tokenizer, prompts[0]))
    for _ in range(8):
        with torch.no_grad():
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    for repeats in (False, True):  # a model that says one token again and again
        with monkeypatch.context() as changes:
            if repeats:
                _says_always(model, 7, changes)
            [answer] = inference.generate(model, tokenizer, prompts[:1], max_new_tokens=8)
            assert list(answer.tokens) == ([7] * 8 if repeats else ids[len(prompt) :])
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def _says_always(model, token: int, changes: pytest.MonkeyPatch) -> None:
    """Makes one token a little likelier than another, at every position."""
    forward = model.lm_head.forward

    def biased(hidden):
        logits = forward(hidden) * 0
        logits[..., token], logits[..., token + 1] = 1.0, 0.9
        return logits

    changes.setattr(model.lm_head, "forward", biased)


def test_sampled_answers_follow_seed_temperature_and_top_p(model, tokenizer, prompts):
    def drawn(**params) -> list[inference.Answer]:
        return inference.sample(model, tokenizer, prompts, inference.SamplingParams(**params), max_new_tokens=6)

    assert inference.SamplingParams() == inference.SamplingParams(temperature=1.0, top_p=1.0, seed=0)
    greedy = inference.generate(model, tokenizer, prompts, max_new_tokens=6)
    assert drawn(temperature=1e-4) == drawn(top_p=1e-6) == greedy
    assert drawn() == drawn() != greedy
    assert drawn(seed=1) != drawn()


def test_any_token_may_be_drawn(model, tokenizer, prompts, monkeypatch):
    """Of logits that are all alike, the fifty first would otherwise be those that are drawn."""
    forward = model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: forward(hidden) * 0)
    answers = inference.sample(model, tokenizer, prompts[:4], inference.SamplingParams(), max_new_tokens=30)
    assert len({id_ for one in answers for id_ in one.tokens}) > 50


def test_log_probabilities_are_the_loss_of_training(model, tokenizer, task_api_rows):
    import torch

    rows = inference.token_rows(tokenizer, task_api_rows["preferences"][:9], "chosen", max_length=256)
    logprobs = inference.sequence_logprobs(model, tokenizer, rows, batch_size=4)
    for row, (total, num) in zip(rows, logprobs, strict=True):
        ids = torch.tensor([row.prompt + row.completion])
        labels = ids.clone()
        labels[0, : len(row.prompt)] = -100
        with torch.no_grad():
            loss = model(input_ids=ids, labels=labels).loss.item()
        assert num == len(row.completion)
        assert -total / num == pytest.approx(loss, rel=1e-5)
    expected = -sum(total for total, _ in logprobs) / sum(num for _, num in logprobs)
    assert inference.mean_loss(logprobs) == pytest.approx(expected)


def test_logits_are_computed_where_answers_stand_and_progress_is_logged(model, tokenizer, caplog, monkeypatch):
    outputs, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda **inputs: outputs.append(forward(**inputs)) or outputs[-1])
    caplog.set_level(logging.INFO)
    rows = [inference.TokenRow([5] * 7, [6, 7]), inference.TokenRow([5] * 9, [6, 7, 8])]
    inference.sequence_logprobs(model, tokenizer, rows, name="base")
    assert [one.logits.shape[1] for one in outputs] == [6]  # the last token before the first answer, and after it
    assert outputs[0].past_key_values is None
    assert caplog.messages == ["base: measured 2 of 2 rows"]


def test_a_tokenizer_needs_no_token_to_pad_with(model, tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    rows = [inference.TokenRow([5] * 7, [6, 7]), inference.TokenRow([5] * 9, [6, 7, 8])]
    padded = inference.sequence_logprobs(model, tokenizer, rows)
    tokenizer.pad_token = None
    assert inference.sequence_logprobs(model, tokenizer, rows) == padded


def test_dropout_is_off(model):
    model.train()
    try:
        with inference._inference(model):
            assert not model.training
    finally:
        model.eval()


@pytest.mark.parametrize(("num", "kept"), [(3, 3), (10_000, 600)])
def test_as_many_likely_tokens_as_there_are(model, tokenizer, num, kept):
    row = inference.TokenRow([5] * 7, [6, 7])
    [(ids, logprobs)] = inference.most_likely(model, tokenizer, [row], num=num)
    assert ids.shape == logprobs.shape == (2, kept)


def test_divergence_from_another_model(model, tokenizer, prompts, task_api_rows):
    import torch

    from validators.inference import TokenRow

    answers = inference.generate(model, tokenizer, prompts[:5], max_new_tokens=6)
    rows = [
        TokenRow(render(tokenizer, prompt), list(one.tokens)) for prompt, one in zip(prompts, answers, strict=False)
    ]
    own = inference.most_likely(model, tokenizer, rows, num=600)
    assert [kl for kl, _ in inference.kl_from(model, tokenizer, rows, own, batch_size=2)] == pytest.approx(
        [0] * 5, abs=1e-4
    )
    with torch.no_grad():
        model.lm_head.weight.neg_()
    try:
        divergence = inference.kl_from(model, tokenizer, rows, own, batch_size=2)
        partly = inference.kl_from(model, tokenizer, rows, [(ids[:, :50], top[:, :50]) for ids, top in own])
        other = model(torch.tensor([rows[0].prompt + rows[0].completion])).logits[0].log_softmax(1)
    finally:
        with torch.no_grad():
            model.lm_head.weight.neg_()
    ours = model(torch.tensor([rows[0].prompt + rows[0].completion])).logits[0].log_softmax(1)
    exact = (ours.exp() * (ours - other)).sum(1)[len(rows[0].prompt) - 1 : -1].sum()
    assert divergence[0] == (pytest.approx(exact.item(), rel=1e-3), len(rows[0].completion))
    assert all(0 < part < whole for (part, _), (whole, _) in zip(partly, divergence, strict=True))
    likely = own[0][0][:, :50].clone()  # all other tokens count as one
    theirs, mine = (
        torch.cat([kept, 1 - kept.sum(1, keepdim=True)], 1)
        for kept in (part.exp()[len(rows[0].prompt) - 1 : -1].gather(1, likely) for part in (ours, other))
    )
    assert partly[0][0] == pytest.approx((theirs * (theirs / mine).log()).sum().item(), rel=1e-3)


def test_log_probabilities_of_a_first_token(model, tokenizer, prompts):
    import torch

    rendered = [render(tokenizer, prompt) for prompt in prompts[:3]]
    found = inference.first_token_logprobs(model, tokenizer, rendered, [5, 9], batch_size=2)
    for ids, values in zip(rendered, found, strict=True):
        expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(0)[[5, 9]].tolist()
        assert values == pytest.approx(expected, abs=1e-4)
        assert inference.first_token_logprobs(model, tokenizer, [ids], [9]) == [[pytest.approx(values[1], abs=1e-4)]]


def test_an_answer_has_its_tokens_and_its_end(taught_model, prompts):
    taught, tokenizer = load_model(taught_model), load_tokenizer(taught_model)
    for answer in inference.generate(taught, tokenizer, prompts[:4], max_new_tokens=48):
        assert answer.num_tokens == len(answer.tokens) - answer.stopped
        assert (answer.tokens[-1] == tokenizer.eos_token_id) == answer.stopped


def test_token_rows_hold_the_end_of_turn_and_leave_long_rows_out(tokenizer, task_api_rows):
    rows = task_api_rows["sft"]
    found = inference.token_rows(tokenizer, rows, "completion", max_length=256)
    assert len(found) == len(rows)
    assert all(tokenizer.eos_token_id in row.completion for row in found)
    assert tokenizer.decode(found[0].completion).startswith(rows[0]["completion"][0]["content"])
    limit = len(found[0])
    assert limit == len(found[0].prompt) + len(found[0].completion)
    assert all(len(row) <= limit for row in inference.token_rows(tokenizer, rows, "completion", max_length=limit))


THINKS = CHAT_TEMPLATE.replace(
    "message['content']",
    "('<think>\n\n</think>\n\n' if loop.last and message['role'] == 'assistant' else '') + message['content']",
)
OPENS = CHAT_TEMPLATE.replace("assistant\n'", "assistant\n<think>\n'")


@pytest.mark.parametrize(
    ("template", "written", "text", "before"),
    [
        (CHAT_TEMPLATE, "{}<|im_end|>\n", "{}", ""),
        (CHAT_TEMPLATE, "{<|pad|> , }", "{<|pad|> , }", ""),
        (THINKS, "<think>\n\n</think>\n\n{}<|im_end|>", "{}", "<think>\n\n</think>\n\n"),
        (THINKS, "<think>\nTwo.\n</think>\n\n{}<|im_end|>", "{}", "<think>\nTwo.\n</think>\n\n"),
        (OPENS, "\n</think>\n\n{}<|im_end|>", "{}", "\n</think>\n\n"),
        (OPENS, "Two.\n</think>\n\n{}<|im_end|>", "{}", "Two.\n</think>\n\n"),
        (OPENS, "{}<|im_end|>", "", "{}"),
        (CHAT_TEMPLATE, "<think>Two.</think>{}", "{}", "<think>Two.</think>"),
    ],
)
def test_what_of_an_answer_is_its_own(tiny_model, template, written, text, before):
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = template
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True  # as for other kinds
    prompt = render(tokenizer, [{"role": "user", "content": "Add a task."}])
    ids = tokenizer.encode(written, add_special_tokens=False)
    answer = inference.Parts(tokenizer).answer(prompt, ids, [tokenizer.eos_token_id])
    assert (answer.text, answer.thoughts) == (text, before)
    assert answer.stopped == ("<|im_end|>" in written)
    assert answer.tokens == tuple(ids[: ids.index(tokenizer.eos_token_id) + 1] if answer.stopped else ids)
    assert answer.written == written.partition("<|im_end|>")[0]
    [judged] = judge_format(
        [[]], [answer], OutputFormat(kind="json_schema", json_schema={"type": "object"}), markers=["<|pad|>"]
    )
    assert judged.fault == (
        None
        if text and answer.stopped
        else "says nothing after its thoughts"
        if answer.stopped
        else f"did not end by itself within {len(ids)} tokens"
    )


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, THINKS, OPENS])
def test_the_answer_begins_in_judging_where_it_does_in_training(tiny_model, task_api_rows, template):
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = template
    row = task_api_rows["sft"][0]
    judged = inference.token_row(tokenizer, row["prompt"], row["completion"])
    assert judged.prompt == render(tokenizer, row["prompt"])
    trained = stage._sft_tokens(tokenizer, row)
    assert trained["input_ids"] == judged.prompt + judged.completion
    assert trained["labels"] == [-100] * len(judged.prompt) + judged.completion


def test_no_tokens_are_no_loss():
    assert math.isnan(inference.mean_loss([]))


def test_the_model_keeps_its_mode(model, tokenizer, prompts):
    model.train()
    try:
        inference.generate(model, tokenizer, prompts[:1], max_new_tokens=1)
        assert model.training
    finally:
        model.eval()
