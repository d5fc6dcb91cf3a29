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


def SamplingParams(*, temperature, max_tokens, stop_token_ids, **drawn_with):
    drawn.append({"temperature": temperature, **drawn_with})
    return SimpleNamespace(max_new_tokens=max_tokens, eos_token_id=stop_token_ids)


class LLM:
    def __init__(self, *, model, gpu_memory_utilization, seed, **lora):
        from posttrain.train.backend import load_model

        assert 0 < gpu_memory_utilization < 0.5
        self.folder, self.load = model, load_model
        loaded.append(lora)

    def generate(self, prompts, settings, lora_request=None):
        model = self.load(self.folder, lora_request)
        return [self.answer(model, one["prompt_token_ids"], own) for one, own in zip(prompts, settings, strict=True)]

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
    found = Engine(tiny_model, adapter, rank=4).generate(model, tokenizer, prompts, max_new_tokens=8)
    assert found == inference.generate(model, tokenizer, prompts, max_new_tokens=8)
    assert vllm.loaded == [{"enable_lora": True, "max_lora_rank": 8} if with_adapter else {}]
    assert vllm.drawn == [{"temperature": 0.0}] * 3


def test_each_of_equal_prompts_is_sampled_with_a_seed_of_its_own(vllm, tiny_model, task_api_rows):
    tokenizer, model = load_tokenizer(tiny_model), load_model(tiny_model)
    prompts = [task_api_rows["sft"][0]["prompt"]] * 2
    sampling = inference.SamplingParams(temperature=0.5, top_p=0.9, seed=7)
    assert len(Engine(tiny_model).sample(model, tokenizer, prompts, sampling, max_new_tokens=4)) == 2
    assert vllm.drawn == [{"temperature": 0.5, "top_p": 0.9, "seed": seed} for seed in (7, 8)]


def test_where_it_is_not_installed_it_is_refused():
    check_generation("transformers")
    with pytest.raises(ValueError, match="validation.generation is 'vllm', which is not installed here: install vllm"):
        check_generation("vllm")


def test_where_it_is_installed_it_is_not_refused(vllm):
    check_generation("vllm")
