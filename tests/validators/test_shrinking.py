from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, MambaConfig, MistralConfig
from transformers.cache_utils import DynamicLayer

from posttrain.rows.chat import load_tokenizer, render
from posttrain.train.backend import load_model
from validators import inference, shrinking

MAX_NEW_TOKENS = 48


@pytest.fixture(scope="module")
def model(taught_model: Path):
    return load_model(taught_model)


@pytest.fixture(scope="module")
def tokenizer(taught_model: Path):
    return load_tokenizer(taught_model)


@pytest.fixture(scope="module")
def rendered(tokenizer, task_api_rows: dict) -> list[list[int]]:
    return [render(tokenizer, row["prompt"]) for row in task_api_rows["sft"][:12]]


def whole(model, tokenizer, rendered: list[list[int]]) -> list[tuple[int, ...]]:
    """The answers of transformers' own generate, to the end of the longest."""
    settings, parts = inference._greedy(model, tokenizer, MAX_NEW_TOKENS), inference.Parts(tokenizer)
    inputs = inference._padded(rendered, settings.pad_token_id, side="left", device="cpu")
    written = model.generate(**inputs, generation_config=settings)[:, inputs["input_ids"].shape[1] :].tolist()
    return [parts.answer(ids, one, settings.eos_token_id).tokens for ids, one in zip(rendered, written, strict=True)]


def in_turn(model, tokenizer, rendered: list[list[int]]) -> list[tuple[int, ...]]:
    answers = inference.generate_from_tokens(model, tokenizer, rendered, max_new_tokens=MAX_NEW_TOKENS)
    return [one.tokens for one in answers]


def test_the_answers_are_those_of_the_whole_batch_and_the_batch_gets_smaller(model, tokenizer, rendered, monkeypatch):
    wanted, sizes, forward = whole(model, tokenizer, rendered), [], model.forward
    monkeypatch.setattr(model, "forward", lambda **rows: sizes.append(len(rows["input_ids"])) or forward(**rows))
    assert in_turn(model, tokenizer, rendered) == wanted
    assert len({len(tokens) for tokens in wanted}) > 2  # the answers end at different steps
    assert len(sizes) <= MAX_NEW_TOKENS  # no step is taken twice
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == len(rendered) > sizes[-1]
    assert sum(sizes) < 1.3 * sum(map(len, wanted)), "rows of ended answers are dropped"


def test_a_cut_off_answer_is_as_long_as_the_limit(model, tokenizer, rendered):
    answers = inference.generate_from_tokens(model, tokenizer, rendered, max_new_tokens=5)
    assert {(one.stopped, len(one.tokens)) for one in answers if not one.stopped} == {(False, 5)}


def test_a_model_whose_cache_has_no_rows_to_drop_keeps_its_batch(model, tokenizer, rendered, monkeypatch):
    wanted, calls, generate = whole(model, tokenizer, rendered), [], model.generate
    monkeypatch.setattr(shrinking, "_has_rows", lambda cache: False)
    monkeypatch.setattr(model, "generate", lambda **inputs: calls.append(len(inputs)) or generate(**inputs))
    assert in_turn(model, tokenizer, rendered) == wanted
    assert len(calls) == 2  # interrupted once, and then whole


@pytest.mark.parametrize(("num_ended", "interrupts"), [(0, False), (1, True), (5, True)])
def test_a_batch_is_interrupted_when_a_fifth_of_its_answers_has_ended(num_ended, interrupts):
    rows = torch.tensor([[9, 9, 3, 9 if at < num_ended else 4] for at in range(5)])  # an end token of a prompt is none
    assert shrinking._few_go_on(2, torch.tensor([8, 9]))(rows, None).tolist() == [interrupts] * 5


@pytest.mark.parametrize("layers", [None, [], [DynamicLayer(), object()]])
def test_a_cache_without_layers_or_with_one_of_another_kind_has_no_rows(layers):
    assert not shrinking._has_rows(SimpleNamespace(layers=layers))


@pytest.mark.parametrize(("config", "drops"), [(LlamaConfig(), True), (MistralConfig(), True), (MambaConfig(), False)])
def test_only_keys_and_values_have_rows(config, drops):
    config.num_hidden_layers = 2
    assert shrinking._has_rows(DynamicCache(config=config)) is drops


@pytest.mark.parametrize("shrinks", [True, False])
def test_ended_answers_are_counted_once(shrinks, model, tokenizer, rendered, monkeypatch):
    monkeypatch.setattr(shrinking, "_has_rows", lambda cache: shrinks)
    counted = []
    settings = inference._greedy(model, tokenizer, MAX_NEW_TOKENS)
    inputs = inference._padded(rendered, settings.pad_token_id, side="left", device="cpu")
    shrinking.generate(model, inputs, settings, advance=counted.append)
    assert sum(counted) == len(rendered) and (len(counted) > 1) is shrinks


@pytest.mark.parametrize(
    ("device", "lengths", "size"),
    [
        ("cpu", [100] * 24, 24),
        ("cpu", [100] * 40, 20),  # two alike, not 32 and 8
        ("cpu", [100] * 33, 17),
        ("cpu", [900] * 64, 16),  # with the answer, 1,000 tokens each
        ("cpu", [900] + [1] * 39, 14),  # three batches of at most 16 rows
        ("cpu", [9000] * 64, 16),
        ("cpu", [], 16),
        ("cuda", [100] * 40, 16),
    ],
)
def test_rows_of_a_batch(device, lengths, size):
    model = SimpleNamespace(device=SimpleNamespace(type=device))
    assert shrinking.batch_size(model, lengths, 100) == size
