"""Greedy answers of a GGUF file, from llama.cpp's own server; no other module knows it.

.gguf file, token ids -> answers, the likeliest tokens; messages -> what its OpenAI-compatible endpoint answers

The server is that of the wheel xllamacpp, in this process, on a port of the loopback interface. It runs on the CPU
unless the wheel was built for a GPU.
"""

import os
from pathlib import Path
from typing import Any

from validators.inference import Answer, Message, Parts
from validators.progress import Progress

MIN_CONTEXT = 1024  # tokens: room for short prompts of any kind
TIMEOUT_SECONDS = 1800  # for one request; the measurement has a limit of its own
BIAS = 1e4  # on a token that is to be written whatever the model says
GREEDY = {"temperature": 0.0, "top_k": 1, "repeat_penalty": 1.0, "seed": 0}


class Server:
    """Serves one file until it is closed; one request at a time, so that no other changes an answer by its rounding."""

    def __init__(self, file: Path, *, context: int = MIN_CONTEXT):
        import requests
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel = max(context, MIN_CONTEXT), 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = num_threads()
        params.verbosity, params.warmup = 1, False
        self.server = xllamacpp.Server(params)
        self.letter: int | None = None  # token
        self.session = requests.Session()
        self.session.trust_env = False  # no proxy stands before this machine itself

    def close(self) -> None:
        """Ends the server and its connections."""
        self.session.close()
        self.server = None

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        """Posts to the server.

        Raises:
            ValueError: it refuses, with what it says.
        """
        answered = self.session.post(f"{self.server.listening_address}{path}", json=body, timeout=TIMEOUT_SECONDS)
        if answered.status_code != 200:
            raise ValueError(f"llama.cpp: {path} answers {answered.status_code}: {answered.text[:500]}")
        return answered.json()

    def tokenize(self, text: str) -> list[int]:
        """Returns token ids of a text in which special tokens count as such; none is added."""
        return self.ask("/tokenize", content=text, add_special=False, parse_special=True)["tokens"]

    def rendered(self, prompt: list[Message], **words: Any) -> str:
        """Renders a prompt through the chat template in the file, as the chat endpoint does."""
        return self.ask("/apply-template", messages=prompt, **words)["prompt"]

    def generate(self, tokenizer, rendered: list[list[int]], *, max_new_tokens: int, name: str) -> list[Answer]:
        """The greedy answer to each prompt, which the caller has rendered to token ids."""
        parts, progress, answers = Parts(tokenizer), Progress(name, "answered", len(rendered), "prompts"), []
        for ids in rendered:
            answers.append(self._answer(parts, ids, max_new_tokens))
            progress.advance(1)
        return answers

    def _answer(self, parts: Parts, ids: list[int], max_new_tokens: int) -> Answer:
        """An answer has stopped where the server stopped by itself, and not at what else ends an answer elsewhere."""
        written = self.ask(
            "/completion", prompt=ids, n_predict=max_new_tokens, return_tokens=True, cache_prompt=False, **GREEDY
        )
        tokens, end = written["tokens"], parts.tokenizer.eos_token_id
        if written["stop_type"] != "eos":
            return parts.answer(ids, tokens, [])
        return parts.answer(ids, [*tokens, end], [end])  # whether the server returns it or not

    def likeliest(self, ids: list[int], *, num: int) -> dict[int, float]:
        """The `num` likeliest tokens after these, with their log-probabilities in nats.

        The server gives them beside a written token that is a whole character, no matter which: a bias, which they
        do not contain, makes it write one letter.
        """
        if self.letter is None:
            self.letter = self.tokenize("a")[-1]
        words = {"n_predict": 1, "n_probs": num, "logit_bias": [[self.letter, BIAS]], "cache_prompt": True}
        written = self.ask("/completion", prompt=ids, **words, **GREEDY)
        return {one["id"]: one["logprob"] for one in written["completion_probabilities"][0]["top_logprobs"]}

    def chat(self, prompt: list[Message], **body: Any) -> dict[str, Any]:
        """The first choice that the OpenAI-compatible endpoint gives."""
        return self.ask("/v1/chat/completions", messages=prompt, cache_prompt=False, **GREEDY, **body)["choices"][0]


def num_threads() -> int:
    """Threads for the server: OMP_NUM_THREADS, as for torch, or the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(os.environ.get("OMP_NUM_THREADS") or cores)
