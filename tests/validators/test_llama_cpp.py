"""What is asked of llama.cpp's server and read from its answers, without the server."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from posttrain.rows import chat
from validators import llama_cpp, progress
from validators.inference import Parts

GREEDY = {"temperature": 0.0, "top_k": 1, "repeat_penalty": 1.0, "seed": 0}


class Asked(llama_cpp.Server):
    """Answers each request by a function, and keeps what was asked."""

    def __init__(self, answer):
        self.answer, self.letter, self.bodies = answer, None, []

    def ask(self, path: str, **body) -> dict:
        self.bodies.append((path, body))
        return self.answer(path)


@pytest.fixture(scope="module")
def parts(tiny_model) -> Parts:
    return Parts(chat.load_tokenizer(tiny_model))


@pytest.mark.parametrize(
    ("written", "kind", "tokens", "stopped"),
    [
        ([50, 51], "eos", (50, 51, "end"), True),
        ([50, 51, "end"], "eos", (50, 51, "end"), True),
        (["end", 50], "eos", ("end",), True),
        ([50, 51], "limit", (50, 51), False),
        ([50, "end"], "word", (50, "end"), False),  # what ends an answer elsewhere does not here
        ([], "eos", ("end",), True),
    ],
)
def test_an_answer_ended_where_the_server_did_by_itself(parts, written, kind, tokens, stopped):
    end = parts.tokenizer.eos_token_id
    ids, wanted = ([end if one == "end" else one for one in some] for some in (written, tokens))
    server = Asked(lambda path: {"tokens": ids, "stop_type": kind})
    answer = server._answer(parts, [1, 2, 3], 7)
    assert (answer.tokens, answer.stopped) == (tuple(wanted), stopped)
    [(path, body)] = server.bodies
    assert (path, body["prompt"], body["n_predict"]) == ("/completion", [1, 2, 3], 7)
    assert body["return_tokens"] is True and body["cache_prompt"] is False
    assert body | GREEDY == body


def test_every_answer_counts_as_one_in_the_log(parts, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress.time, "monotonic", lambda: 1.0)
    server = Asked(lambda path: {"tokens": [50], "stop_type": "eos"})
    answers = server.generate(parts.tokenizer, [[1], [2], [3]], max_new_tokens=4, name="f16")
    assert len(answers) == 3 and caplog.messages == ["f16: answered 3 of 3 prompts"]


def test_the_likeliest_tokens_are_told_beside_a_letter_that_is_looked_up_once():
    told = {"completion_probabilities": [{"top_logprobs": [{"id": 5, "logprob": -0.5}, {"id": 6, "logprob": -2.0}]}]}
    server = Asked(lambda path: {"tokens": [1, 9]} if path == "/tokenize" else told)
    for _ in range(2):
        assert server.likeliest([1, 2], num=2) == {5: -0.5, 6: -2.0}
    assert [path for path, _ in server.bodies] == ["/tokenize", "/completion", "/completion"]
    body = server.bodies[1][1]
    assert body | GREEDY == body and body["cache_prompt"] is True  # prompts grow by a token at a time
    assert (body["n_predict"], body["n_probs"], body["logit_bias"]) == (1, 2, [[9, llama_cpp.BIAS]])
    assert server.bodies[0][1] == {"content": "a", "add_special": False, "parse_special": True}


def test_the_chat_endpoint_is_asked_greedily_and_its_first_choice_counts():
    server = Asked(lambda path: {"choices": [{"message": {"content": "A"}}, {"message": {"content": "B"}}]})
    assert server.chat([{"role": "user", "content": "Hi"}], max_tokens=3) == {"message": {"content": "A"}}
    [(path, body)] = server.bodies
    assert (path, body["max_tokens"], body["cache_prompt"]) == ("/v1/chat/completions", 3, False)
    assert body | GREEDY == body


@pytest.mark.parametrize(("asked", "context"), [(1023, 1024), (2000, 2000)])
def test_a_server_takes_one_request_at_a_time_through_no_proxy_and_is_closed(monkeypatch, asked, context):
    closed = []
    monkeypatch.setattr(requests.Session, "close", lambda session: closed.append(session))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setitem(sys.modules, "xllamacpp", SimpleNamespace(CommonParams=Params, Server=lambda params: params))
    with llama_cpp.Server(Path("m.gguf"), context=asked) as server:
        params, session = server.server, server.session
        assert (params.model.path, params.n_ctx, params.n_parallel) == ("m.gguf", context, 1)
        assert params.cpuparams.n_threads == params.cpuparams_batch.n_threads == 3
        assert (params.verbosity, params.warmup) == (1, False)  # answers need no second start
        assert not session.trust_env
    assert closed == [session] and server.server is None


class Params:
    """Stands for the parameters of the wheel, which no process but a measurement's loads."""

    def __init__(self):
        self.model, self.cpuparams, self.cpuparams_batch = SimpleNamespace(), SimpleNamespace(), SimpleNamespace()


def test_a_request_that_is_refused_says_why():
    server = object.__new__(llama_cpp.Server)
    refusal = SimpleNamespace(status_code=400, text="x" * 600)
    server.session = SimpleNamespace(post=lambda *_, **__: refusal)
    server.server = SimpleNamespace(listening_address="http://127.0.0.1:9")
    with pytest.raises(ValueError, match="^llama.cpp: /completion answers 400: x{500}$"):
        server.ask("/completion")


def test_the_server_has_as_many_threads_as_torch(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert llama_cpp.num_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(
        llama_cpp.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4} if pid == 0 else {0}, raising=False
    )
    assert llama_cpp.num_threads() == 5
    monkeypatch.delattr(llama_cpp.os, "sched_getaffinity")
    for counted, threads in ((7, 7), (None, 1)):
        monkeypatch.setattr(llama_cpp.os, "cpu_count", lambda counted=counted: counted)
        assert llama_cpp.num_threads() == threads
