"""Does a GGUF file serve what the merged model says? Prompts, tokens, the end of an answer, a tool call.

server with the file, tokenizer of the model folder, prompts -> what is wrong, one line each; an empty list: nothing
"""

from typing import Any

from posttrain.rows import chat
from posttrain.rows.formats import tools_of
from posttrain.rows.tools import names_of
from validators import calls
from validators.answers import parse_json
from validators.inference import Answer, Message
from validators.llama_cpp import Server

MAX_SHOWN = 80  # characters of an answer


def words_of(tokenizer, prompt: list[Message]) -> dict[str, Any]:
    """Returns what a request needs beside the messages for the server to render them as training did."""
    tools = tools_of(prompt)
    dated = chat.asks_for_date(tokenizer.chat_template)
    words = {"chat_template_kwargs": {"date_string": f"{chat.TODAY:%d %b %Y}"}} if dated else {}
    return words | ({"tools": tools} if tools else {})


def messages_of(prompt: list[Message]) -> list[Message]:
    """Returns the messages of a request: tools stand beside them."""
    return [{key: value for key, value in message.items() if key != "tools"} for message in prompt]


def prompt_faults(server: Server, tokenizer, prompts: list[list[Message]], rendered: list[list[int]]) -> list[str]:
    """Compares what the server makes of each prompt, text and tokens, with what the model was trained on."""
    faults = []
    for number, (prompt, ids) in enumerate(zip(prompts, rendered, strict=True), start=1):
        wanted = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        text = server.rendered(messages_of(prompt), **words_of(tokenizer, prompt))
        if text != wanted:
            faults.append(f"prompt {number}: other text from the chat template, {_difference(text, wanted)}")
        elif (tokens := server.tokenize(text)) != ids:
            faults.append(f"prompt {number}: other tokens, {_difference(tokens, ids)}")
    return faults


def _difference(one: Any, other: Any) -> str:
    """Says where two texts or lists of tokens part."""
    at = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"from position {at} on: {one[at : at + 20]!r} instead of {other[at : at + 20]!r}"


def chat_faults(
    server: Server, tokenizer, prompts: list[list[Message]], answers: list[Answer], *, limit: int
) -> list[str]:
    """Asks the chat endpoint the first prompt whose answer stopped: it must say the same, and that it stopped."""
    stopped = [at for at, answer in enumerate(answers) if answer.stopped]
    if not stopped:
        return ["chat endpoint: not asked, because no answer to a prompt stopped by itself"]
    prompt, answer = prompts[stopped[0]], answers[stopped[0]]
    words = words_of(tokenizer, prompt) | {"max_tokens": limit, "reasoning_format": "none"}
    choice = server.chat(messages_of(prompt), **words)
    faults = []
    if choice["finish_reason"] not in ("stop", "tool_calls"):
        faults.append(f"chat endpoint: ends by {choice['finish_reason']}, not by the model's own stop token")
    said = choice["message"].get("content") or ""
    is_call = bool(choice["message"].get("tool_calls"))  # which the server has taken out of the text
    if not is_call and said.strip() != answer.written.strip():
        faults.append(f"chat endpoint: says {said[:MAX_SHOWN]!r}, the file {answer.written[:MAX_SHOWN]!r}")
    return faults


def call_faults(
    server: Server, tokenizer, prompts: list[list[Message]], answers: list[Answer], *, limit: int
) -> list[str] | None:
    """Asks the chat endpoint the first prompt that the file answers with a call of a tool that it offers: the call must
    come back as one. None: no answer is such a call.
    """
    names = map(_called, prompts, answers)
    prompt, name = next(((prompt, name) for prompt, name in zip(prompts, names, strict=True) if name), (None, None))
    if prompt is None:
        return None
    choice = server.chat(messages_of(prompt), **words_of(tokenizer, prompt) | {"max_tokens": limit})
    names = [one["function"]["name"] for one in choice["message"].get("tool_calls") or []]
    if names[:1] != [name]:
        said = str(choice["message"].get("content"))[:MAX_SHOWN]
        return [f"chat endpoint: returns the calls {names} and the text {said!r}, where the file calls {name}"]
    return []


def _called(prompt: list[Message], answer: Answer) -> str | None:
    """Returns the name of the first tool of a prompt that an answer calls."""
    value = parse_json(calls.as_json(answer.text, prompt)) if tools_of(prompt) and answer.stopped else None
    first = value[0] if isinstance(value, list) and value else value
    name = first.get("name") if isinstance(first, dict) else None
    return name if name in names_of(tools_of(prompt)) else None
