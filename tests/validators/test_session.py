"""One model at a time, asked through transformers or through an engine, and rows that are short enough."""

import logging
import weakref

import pytest
import torch

from posttrain.config import SftLimits
from posttrain.rows import chat
from posttrain.train import backend
from validators import session
from validators.held_out import within
from validators.inference import Answer, SamplingParams
from validators.session import Session

PROMPTS = [[{"role": "user", "content": "Add a task."}]]
LIMITS = SftLimits(max_new_tokens=4)


class Engine:
    """Answers with what it was asked, as vLLM's would be."""

    def generate(self, model, tokenizer, prompts, *, max_new_tokens, with_adapter=True) -> list[Answer]:
        return [Answer(f"greedy {max_new_tokens} {with_adapter}", True, 1) for _ in prompts]

    def sample(self, model, tokenizer, prompts, *, sampling, max_new_tokens) -> list[Answer]:
        return [Answer(f"sampled {max_new_tokens} {sampling.seed}", True, 1) for _ in prompts]


@pytest.fixture
def loaded(tiny_model, tiny_adapter) -> Session:
    one = Session(LIMITS)
    one.load(tiny_model, tiny_adapter, name="the adapter")
    return one


def text(judged: list) -> str:
    [one] = judged
    return one.answer.text


def test_with_its_adapter_a_model_says_something_else(loaded, caplog):
    caplog.set_level(logging.INFO)
    assert loaded.engine is None
    assert text(loaded.answer(PROMPTS)) != text(loaded.answer_without_adapter(PROMPTS))
    assert text(loaded.sample(PROMPTS, SamplingParams(seed=1))) == text(loaded.sample(PROMPTS, SamplingParams(seed=1)))
    assert [line.partition(":")[0] for line in caplog.messages] == ["the adapter", "base", "the adapter", "the adapter"]


def test_an_engine_answers_in_its_place(loaded):
    loaded.engine = Engine()
    assert text(loaded.answer(PROMPTS)) == "greedy 4 True"
    assert text(loaded.answer_without_adapter(PROMPTS)) == "greedy 4 False"
    assert text(loaded.sample(PROMPTS, SamplingParams(seed=3))) == "sampled 4 3"


def test_an_engine_is_made_only_where_it_is_configured(tiny_model, tiny_adapter, monkeypatch):
    monkeypatch.setattr(session.vllm, "check_generation", lambda generation: None)
    monkeypatch.setattr(session.vllm, "Engine", lambda path, adapter, *, rank: (path, adapter, rank))
    one = Session(LIMITS.model_copy(update={"generation": "vllm"}))
    one.load(tiny_model, tiny_adapter, rank=4)
    assert one.engine == (tiny_model, tiny_adapter, 4)
    one.free()
    assert one.engine is one.model is one.tokenizer is None
    one.load(tiny_model)
    assert one.engine == (tiny_model, None, 16)


def test_the_model_before_is_gone_before_the_next_is_loaded(loaded, tiny_model, monkeypatch):
    emptied, model = [], weakref.ref(loaded.model)
    loaded.model.itself = loaded.model  # which only the garbage collector resolves
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(model()))
    monkeypatch.setattr(backend, "load_model", lambda path, adapter: (path, adapter, model()))
    loaded.load(tiny_model)
    assert loaded.model == (tiny_model, None, None) and emptied == [None]


def test_an_engine_that_is_not_installed_is_refused_before_anything_is_loaded():
    with pytest.raises(ValueError, match="validation.generation is 'vllm', which is not installed here"):
        Session(LIMITS.model_copy(update={"generation": "vllm"}))


def test_a_tokenizer_that_is_there_is_used(tiny_model):
    tokenizer = chat.load_tokenizer(tiny_model)
    one = Session(LIMITS)
    one.load(tiny_model, tokenizer=tokenizer)
    assert one.tokenizer is tokenizer


def test_rows_that_are_left_out_are_counted_in_the_log(tiny_model, task_api_rows, caplog):
    rows = task_api_rows["sft"][:6]
    tokenizer = chat.load_tokenizer(tiny_model)
    limit = max(len(chat.render(tokenizer, row["prompt"], row["completion"])) for row in rows)
    assert within(tiny_model, rows, limit) == rows and caplog.messages == []
    kept = within(tiny_model, rows, limit - 1)
    assert caplog.messages == [f"{6 - len(kept)} of 6 held-out rows left out: longer than {limit - 1} tokens"]
