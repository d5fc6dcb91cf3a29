"""What a server makes of prompts and says at its chat endpoint, compared with what the file itself says."""

import pytest

from posttrain.rows import chat
from tests.tool_chat import ASKED, CALL, TOOL, WRITTEN
from validators import serving
from validators.inference import Answer

HELLO = [{"role": "user", "content": "Hello?"}]
OFFERED = [ASKED | {"tools": [TOOL]}]


class Stub:
    """A server that renders, tokenizes and answers as it is told, and keeps what it was asked."""

    def __init__(self, texts: dict[str, str] | None = None, ids: dict[str, list[int]] | None = None, **choice):
        self.texts, self.ids, self.choice = texts or {}, ids or {}, {"finish_reason": "stop"} | choice
        self.asked: list[tuple[list, dict]] = []

    def rendered(self, prompt: list[dict], **words) -> str:
        self.asked.append((prompt, words))
        return self.texts[prompt[-1]["content"]]

    def tokenize(self, text: str) -> list[int]:
        return self.ids[text]

    def chat(self, prompt: list[dict], **words) -> dict:
        self.asked.append((prompt, words))
        return self.choice


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return chat.load_tokenizer(tiny_model)


def said(text: str, *, stopped: bool = True, thoughts: str = "") -> Answer:
    return Answer(text, stopped, 3, thoughts=thoughts)


def test_a_prompt_is_to_have_the_text_and_the_tokens_of_the_training(tokenizer, monkeypatch):
    cleaning = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    monkeypatch.setattr(tokenizer, cleaning, True)  # as of a tokenizer that is no BPE
    prompts = [HELLO, [{"role": "user", "content": "Bye ?"}]]
    rendered = [chat.render(tokenizer, prompt) for prompt in prompts]
    texts = {prompt[-1]["content"]: tokenizer.decode(ids) for prompt, ids in zip(prompts, rendered, strict=True)}
    ids = dict(zip(texts.values(), rendered, strict=True))
    assert serving.prompt_faults(Stub(texts, ids), tokenizer, prompts, rendered) == []
    other = texts | {"Bye ?": texts["Bye ?"][:4] + "#" + texts["Bye ?"][5:]}
    (fault,) = serving.prompt_faults(Stub(other, ids), tokenizer, prompts, rendered)
    assert fault.startswith("prompt 2: other text from the chat template, from position 4 on: '#")
    cut = ids | {texts["Hello?"]: rendered[0][:-1]}
    (fault,) = serving.prompt_faults(Stub(texts, cut), tokenizer, prompts, rendered)
    end = f"from position {len(rendered[0]) - 1} on: [] instead of [{rendered[0][-1]}]"
    assert fault == f"prompt 1: other tokens, {end}"


def test_no_more_than_twenty_signs_of_a_difference_are_shown():
    assert serving._difference("a" + "b" * 30, "a" + "c" * 30) == (
        f"from position 1 on: {'b' * 20!r} instead of {'c' * 20!r}"
    )


def test_tools_stand_beside_the_messages_and_a_date_only_where_the_template_asks(tokenizer, monkeypatch):
    assert serving.words_of(tokenizer, HELLO) == {}
    assert serving.words_of(tokenizer, OFFERED) == {"tools": [TOOL]}
    assert serving.messages_of(OFFERED) == [ASKED]
    monkeypatch.setattr(chat, "asks_for_date", lambda template: True)
    assert serving.words_of(tokenizer, HELLO)["chat_template_kwargs"].keys() == {"date_string"}


@pytest.mark.parametrize(
    ("choice", "fault"),
    [
        ({"message": {"content": " Hi. "}}, None),
        ({"message": {"content": "Hi."}, "finish_reason": "tool_calls"}, None),
        ({"message": {"content": None, "tool_calls": [CALL]}}, None),
        ({"message": {"content": "Hi."}, "finish_reason": "length"}, "ends by length, not by the model's own stop"),
        ({"message": {"content": "Ho."}}, "says 'Ho.', the file 'Hi.'"),
        ({"message": {}}, "says '', the file 'Hi.'"),
        ({"message": {"content": "Ho.", "tool_calls": []}}, "says 'Ho.', the file 'Hi.'"),
    ],
)
def test_the_chat_endpoint_is_to_say_the_same_and_that_it_ended(tokenizer, choice, fault):
    server = Stub(**choice)
    answers = [said("cut", stopped=False), said("Hi."), said("Later.")]
    faults = serving.chat_faults(server, tokenizer, [OFFERED, HELLO, OFFERED], answers, limit=7)
    assert len(faults) == (fault is not None) and all(fault in one for one in faults)
    [(prompt, words)] = server.asked
    assert (prompt, words) == (HELLO, {"max_tokens": 7, "reasoning_format": "none"})


def test_no_more_than_eighty_characters_of_an_answer_are_shown(tokenizer):
    server = Stub(message={"content": "a" * 99})
    faults = serving.chat_faults(server, tokenizer, [HELLO], [said("b" * 99)], limit=7)
    assert faults == [f"chat endpoint: says {'a' * 80!r}, the file {'b' * 80!r}"]


def test_where_no_answer_ended_the_chat_endpoint_is_not_asked(tokenizer):
    server = Stub()
    (fault,) = serving.chat_faults(server, tokenizer, [HELLO], [said("Hi", stopped=False)], limit=7)
    assert "not asked" in fault and server.asked == []


def test_the_first_answer_that_calls_a_tool_is_asked_again(tokenizer):
    asked = ([HELLO, OFFERED, OFFERED], [said(WRITTEN), said("No."), said(WRITTEN)])
    server = Stub(message={"tool_calls": [CALL, CALL]})
    assert serving.call_faults(server, tokenizer, *asked, limit=7) == []
    assert server.asked == [([ASKED], {"tools": [TOOL], "max_tokens": 7})]
    for message in ({"content": WRITTEN}, {"tool_calls": None}, {"tool_calls": [{"function": {"name": "drop"}}, CALL]}):
        (fault,) = serving.call_faults(Stub(message=message), tokenizer, *asked, limit=7)
        assert fault.startswith("chat endpoint: returns the calls [") and fault.endswith(
            "where the file calls add_task"
        )


@pytest.mark.parametrize(
    ("prompt", "answer", "name"),
    [
        (OFFERED, said(WRITTEN), "add_task"),
        (OFFERED, said(f"{WRITTEN}{WRITTEN.replace('add_task', 'drop_task')}"), "add_task"),
        (OFFERED, said(WRITTEN, stopped=False), None),
        (HELLO, said(WRITTEN), None),
        (OFFERED, said(WRITTEN.replace("add_task", "drop_task")), None),
        (OFFERED, said("[]"), None),
        (OFFERED, said("No."), None),
    ],
)
def test_a_call_is_one_of_a_tool_that_is_offered_in_an_answer_that_ended(prompt, answer, name):
    assert serving._called(prompt, answer) == name
