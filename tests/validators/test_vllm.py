"""Answers through vLLM, on a module of that name that answers with transformers."""

import sys

import pytest

from posttrain.rows.chat import load_tokenizer
from posttrain.train.backend import load_model
from validators import inference
from validators.vllm import Engine, check_generation

STAND_IN = """
import sys
from types import ModuleType, SimpleNamespace

import torch

lora, request = ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
request.LoRARequest = lambda name, number, path: path
sys.modules |= {"vllm.lora": lora, "vllm.lora.request": request}
loaded = []


drawn = []


def SamplingParams(*, temperature, max_tokens, stop_token_ids=None, **drawn_with):
    drawn.append({"temperature": temperature, **drawn_with})
    return SimpleNamespace(max_new_tokens=max_tokens, eos_token_id=stop_token_ids)


class LLM:
    def __init__(self, *, model, gpu_memory_utilization, seed, **lora):
        from posttrain.train.backend import load_model

        assert 0 < gpu_memory_utilization < 0.5
        self.folder, self.load = model, load_model
        loaded.append(lora)

    def generate(self, prompts, settings, lora_request=None):
        if not isinstance(settings, list):
            return [self.tables(one["prompt_token_ids"]) for one in prompts]
        model = self.load(self.folder, lora_request)
        return [self.answer(model, one["prompt_token_ids"], own) for one, own in zip(prompts, settings, strict=True)]

    def tables(self, ids):
        told = [{id_: SimpleNamespace(logprob=-1.0)} for id_ in ids[1:]]
        return SimpleNamespace(prompt_logprobs=[None, *told])

    def answer(self, model, ids, settings):
        written = model.generate(input_ids=torch.tensor([ids]), do_sample=False, **vars(settings))
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(written[0, len(ids):].tolist()))])
"""


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    (tmp_path / "vllm.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    import vllm

    yield vllm
    for name in ("vllm", "vllm.lora", "vllm.lora.request"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("with_adapter", [False, True])
def test_it_answers_as_transformers_does(with_adapter, vllm, tiny_model, tiny_adapter, task_api_rows):
    adapter = tiny_adapter if with_adapter else None
    tokenizer, model = load_tokenizer(tiny_model), load_model(tiny_model, adapter)
    prompts = [row["prompt"] for row in task_api_rows["sft"][:3]]
    written = Engine(tiny_model, adapter, rank=4).generate(model, tokenizer, prompts, max_new_tokens=8)
    assert written == inference.generate(model, tokenizer, prompts, max_new_tokens=8)
    assert vllm.loaded == [{"enable_lora": True, "max_lora_rank": 8} if with_adapter else {}]
    assert vllm.drawn == [{"temperature": 0.0}] * 3


def test_each_of_equal_prompts_is_sampled_with_a_seed_of_its_own(vllm, tiny_model, task_api_rows):
    tokenizer, model = load_tokenizer(tiny_model), load_model(tiny_model)
    prompts = [task_api_rows["sft"][0]["prompt"]] * 2
    sampling = inference.SamplingParams(temperature=0.5, top_p=0.9, seed=7)
    assert len(Engine(tiny_model).sample(model, tokenizer, prompts, sampling, max_new_tokens=4)) == 2
    assert vllm.drawn == [{"temperature": 0.5, "top_p": 0.9, "seed": seed} for seed in (7, 8)]


@pytest.mark.parametrize(("rank", "most"), [(1, 8), (8, 8), (9, 16), (16, 16), (17, 32)])
def test_there_is_room_for_an_adapter_of_any_rank(rank, most, vllm, tiny_model, tiny_adapter):
    Engine(tiny_model, tiny_adapter, rank=rank)
    assert vllm.loaded == [{"enable_lora": True, "max_lora_rank": most}]


def test_the_likeliest_tokens_are_those_of_the_answer(vllm, tiny_model):
    engine = Engine(tiny_model, num_likeliest=5)
    assert vllm.loaded == [{"max_logprobs": 5}]
    rows = [inference.TokenRow([1, 2, 3], [4, 5]), inference.TokenRow([1], [6])]
    assert engine.likeliest(rows, num=5) == [[{4: -1.0}, {5: -1.0}], [{6: -1.0}]]
    assert vllm.drawn == [{"temperature": 0.0, "prompt_logprobs": 5}]


def test_without_its_adapter_the_base_answers(vllm, tiny_model, tiny_adapter, task_api_rows):
    tokenizer, model = load_tokenizer(tiny_model), load_model(tiny_model)
    prompts = [row["prompt"] for row in task_api_rows["sft"][:1]]
    engine = Engine(tiny_model, tiny_adapter)
    assert vllm.loaded == [{"enable_lora": True, "max_lora_rank": 16}]
    written = engine.generate(model, tokenizer, prompts, max_new_tokens=4, with_adapter=False)
    assert written == inference.generate(model, tokenizer, prompts, max_new_tokens=4)
    assert written != engine.generate(model, tokenizer, prompts, max_new_tokens=4)


def test_where_it_is_not_installed_it_is_refused():
    check_generation("transformers")
    with pytest.raises(ValueError, match="validation.generation is 'vllm', which is not installed here: install vllm"):
        check_generation("vllm")


def test_where_it_is_installed_it_is_not_refused(vllm):
    check_generation("vllm")
