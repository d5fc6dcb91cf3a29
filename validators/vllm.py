"""Greedy or sampled answers through vLLM, where the configuration asks for it; no other module knows vLLM.

model folder, adapter folder, prompts -> the answers of `inference.generate` and `inference.sample`, many times
as fast on a GPU

vLLM is not a dependency: `validation.generation: vllm` needs it installed in the image of the gates.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from posttrain.rows.chat import render
from validators.inference import Answer, Message, Parts, SamplingParams, TokenRow, end_token_ids

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

    def __init__(self, folder: Path, adapter: Path | None = None, *, rank: int = 16, num_likeliest: int = 0):
        from vllm import LLM

        lora = {"enable_lora": True, "max_lora_rank": max(8, 1 << (rank - 1).bit_length())} if adapter else {}
        most = {"max_logprobs": num_likeliest} if num_likeliest else {}
        self.model = LLM(model=str(folder), gpu_memory_utilization=GPU_SHARE, seed=0, **most, **lora)
        self.adapter = adapter

    def generate(
        self, model, tokenizer, prompts: list[list[Message]], *, max_new_tokens: int, with_adapter: bool = True
    ) -> list[Answer]:
        """Does what `inference.generate` does; `model` is used for its end tokens only. Without its adapter the base
        answers.
        """
        from vllm.lora.request import LoRARequest

        lora = LoRARequest("adapter", 1, str(self.adapter)) if self.adapter and with_adapter else None
        ends = end_token_ids(model, tokenizer)
        rendered = [render(tokenizer, prompt) for prompt in prompts]
        return self.generate_from_tokens(tokenizer, rendered, ends, max_new_tokens=max_new_tokens, lora=lora)

    def sample(
        self, model, tokenizer, prompts: list[list[Message]], sampling: SamplingParams, *, max_new_tokens: int
    ) -> list[Answer]:
        """Does what `inference.sample` does. A seed is that of one prompt: equal ones would get equal answers."""
        drawn = [
            {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed + number}
            for number in range(len(prompts))
        ]
        ends = end_token_ids(model, tokenizer)
        rendered = [render(tokenizer, prompt) for prompt in prompts]
        return self._answers(tokenizer, rendered, ends, drawn, max_new_tokens=max_new_tokens)

    def generate_from_tokens(
        self, tokenizer, rendered: list[list[int]], ends: list[int], *, max_new_tokens: int, lora: Any = None
    ) -> list[Answer]:
        """`generate` for prompts that the caller has rendered to token ids; `ends`: the tokens that end an answer."""
        drawn = [{"temperature": 0.0}] * len(rendered)
        return self._answers(tokenizer, rendered, ends, drawn, max_new_tokens=max_new_tokens, lora_request=lora)

    def _answers(
        self,
        tokenizer,
        rendered: list[list[int]],
        ends: list[int],
        drawn: list[dict],
        *,
        max_new_tokens: int,
        **request: Any,
    ) -> list[Answer]:
        """The answers to prompts, each with its own settings of the draw."""
        import vllm

        settings = [vllm.SamplingParams(max_tokens=max_new_tokens, stop_token_ids=ends, **one) for one in drawn]
        outputs = self.model.generate([{"prompt_token_ids": ids} for ids in rendered], settings, **request)
        parts = Parts(tokenizer)
        return [
            parts.answer(ids, list(one.outputs[0].token_ids), ends) for ids, one in zip(rendered, outputs, strict=True)
        ]

    def likeliest(self, rows: list[TokenRow], *, num: int) -> list[list[dict[int, float]]]:
        """The `num` likeliest tokens at each position of each row's answer, with their log-probabilities in nats."""
        from vllm import SamplingParams

        settings = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=num)
        outputs = self.model.generate([{"prompt_token_ids": row.prompt + row.completion} for row in rows], settings)
        return [
            [{id_: one.logprob for id_, one in table.items()} for table in output.prompt_logprobs[len(row.prompt) :]]
            for row, output in zip(rows, outputs, strict=True)
        ]
