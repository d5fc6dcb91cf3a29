"""Greedy or sampled answers through vLLM, where the configuration asks for it; no other module knows vLLM.

model folder, adapter folder, prompts -> the answers of `inference.generate` and `inference.sample`, many times
as fast on a GPU

vLLM is not a dependency: `validation.generation: vllm` needs it installed in the image of the gates.
"""

from importlib.util import find_spec
from pathlib import Path

from posttrain.rows.chat import render
from validators.inference import Answer, Message, Parts, SamplingParams, end_token_ids

GPU_SHARE = 0.45  # of the GPU's memory; the gate's own copy of the model, for likelihoods, takes as much again


def check_generation(generation: str) -> None:
    """Raises ValueError if answers are to come from vLLM and it is not installed."""
    if generation == "vllm" and find_spec("vllm") is None:
        raise ValueError(
            "validation.generation is 'vllm', which is not installed here: "
            "install vllm in the image of the gates, or set it to 'transformers'"
        )


class Engine:
    """A model, or an adapter on its base, loaded once to answer any number of prompts."""

    def __init__(self, folder: Path, adapter: Path | None = None, *, rank: int = 16):
        from vllm import LLM

        lora = {"enable_lora": True, "max_lora_rank": max(8, 1 << (rank - 1).bit_length())} if adapter else {}
        self.model = LLM(model=str(folder), gpu_memory_utilization=GPU_SHARE, seed=0, **lora)
        self.adapter = adapter

    def generate(
        self, model, tokenizer, prompts: list[list[Message]], *, max_new_tokens: int, with_adapter: bool = True
    ) -> list[Answer]:
        """Does what `inference.generate` does; `model` is used for its end tokens only. Without its adapter the base
        answers.
        """
        from vllm.lora.request import LoRARequest

        lora = LoRARequest("adapter", 1, str(self.adapter)) if self.adapter and with_adapter else None
        drawn = [{"temperature": 0.0}] * len(prompts)
        return self._answers(model, tokenizer, prompts, drawn, max_new_tokens=max_new_tokens, lora_request=lora)

    def sample(
        self, model, tokenizer, prompts: list[list[Message]], sampling: SamplingParams, *, max_new_tokens: int
    ) -> list[Answer]:
        """Does what `inference.sample` does. A seed is that of one prompt: equal ones would get equal answers."""
        drawn = [
            {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed + number}
            for number in range(len(prompts))
        ]
        return self._answers(model, tokenizer, prompts, drawn, max_new_tokens=max_new_tokens)

    def _answers(
        self, model, tokenizer, prompts: list[list[Message]], drawn: list[dict], *, max_new_tokens: int, **request
    ) -> list[Answer]:
        """The answers to prompts, each with its own settings of the draw."""
        import vllm

        ends = end_token_ids(model, tokenizer)
        settings = [vllm.SamplingParams(max_tokens=max_new_tokens, stop_token_ids=ends, **one) for one in drawn]
        rendered = [render(tokenizer, prompt) for prompt in prompts]
        outputs = self.model.generate([{"prompt_token_ids": ids} for ids in rendered], settings, **request)
        parts = Parts(tokenizer)
        return [
            parts.answer(ids, list(one.outputs[0].token_ids), ends) for ids, one in zip(rendered, outputs, strict=True)
        ]
