from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import DynamicCache, LlamaConfig, MambaConfig, MistralConfig

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


@pytest.mark.parametrize(("config", "drops"), [(LlamaConfig(), True), (MistralConfig(), True), (MambaConfig(), False)])
def test_only_keys_and_values_have_rows(config, drops):
    config.num_hidden_layers = 2
    assert shrinking._has_rows(DynamicCache(config=config)) is drops


def test_ended_answers_are_counted_once(model, tokenizer, rendered):
    counted = []
    settings = inference._greedy(model, tokenizer, MAX_NEW_TOKENS)
    inputs = inference._padded(rendered, settings.pad_token_id, side="left", device="cpu")
    shrinking.generate(model, inputs, settings, advance=counted.append)
    assert sum(counted) == len(rendered) and len(counted) > 1


@pytest.mark.parametrize(
    ("device", "num", "length", "size"),
    [
        ("cpu", 24, 100, 24),
        ("cpu", 40, 100, 20),  # two alike, not 32 and 8
        ("cpu", 64, 900, 16),  # with the answer, 1,000 tokens each
        ("cpu", 64, 9000, 16),
        ("cpu", 0, 0, 16),
        ("cuda", 40, 100, 16),
    ],
)
def test_rows_of_a_batch(device, num, length, size):
    model = SimpleNamespace(device=SimpleNamespace(type=device))
    assert shrinking.batch_size(model, [length] * num, 100) == size
