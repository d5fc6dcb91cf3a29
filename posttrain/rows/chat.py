"""Conversations as token ids, through the model's own chat template: the same in training and in judging.

tokenizer of a model folder, messages -> token ids of a prompt and of an answer to it

`split` says where an answer begins and `end_token_ids` which tokens end it; training, gates and generation ask these
two. A template that asks for the date gets `TODAY` everywhere: a model trained on Friday is judged by the same prompts
on Monday, and a training that is resumed the next day goes on with the same rows.

There are two tokenizers. `load_tokenizer` loads that of transformers, which trains and generates. `ChatTokenizer` only
renders conversations, to the same ids, and loads in a tenth of the time: importing transformers takes seconds.
"""

import json
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from os.path import commonprefix
from pathlib import Path
from typing import Any

from posttrain.rows import keys, thoughts
from posttrain.rows.files import read_text
from posttrain.rows.formats import ANSWER_KEYS, tools_of

# The names that a chat template may use; their values come from the tokenizer's configuration.
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TODAY = datetime(2024, 7, 26)  # the date that Llama 3's template writes where it cannot ask for one
DATE = f"{TODAY:%d %B %Y}"


def load_tokenizer(path: str | Path):
    """Loads the fast tokenizer of a model folder with transformers, without torch.

    Its padding side is up to the caller: left to generate, right to train.

    Raises:
        ValueError: there is none, or it has no chat template or no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    _check_is_there(path)
    return _checked(AutoTokenizer.from_pretrained(path, local_files_only=True), path)


class NotRendered(ValueError):
    """A chat template leaves out a part of the conversation, which the model would then never see."""


class ChatTokenizer:
    """The tokenizer and the chat template of a model folder, without transformers.

    It reads tokenizer.json, tokenizer_config.json, chat_template.jinja and, in folders that older versions wrote,
    special_tokens_map.json.
    """

    def __init__(self, path: str | Path):
        """Raises ValueError as `load_tokenizer` does."""
        _check_is_there(path)
        config = _config(Path(path))
        self.chat_template: str | None = _chat_template(Path(path), config)
        self.tools_template: str | None = _chat_template(Path(path), config, name="tool_use")
        self.special_tokens = {name: _content(config[name]) for name in SPECIAL_TOKENS if config.get(name)}
        self._tokenizer = _backend(Path(path), config, self.special_tokens)
        _checked(self, path)
        self.end_token_ids = end_token_ids(_configured_ends(Path(path)), self)
        _environment()  # imported now, so that forked processes find it there

    @property
    def eos_token_id(self) -> int | None:
        token = self.special_tokens.get("eos_token")
        return None if token is None else self._tokenizer.token_to_id(token)

    def apply_chat_template(
        self, messages: list[dict], *, add_generation_prompt: bool, tokenize: bool = True, return_dict: bool = False,
        **variables: Any,
    ) -> list[int] | str:  # fmt: skip
        """Returns token ids, or text, as transformers does; `variables` are the template's."""
        template = (variables.get("tools") and self.tools_template) or self.chat_template
        text = _template(template).render(
            **({"tools": None, "documents": None} | self.special_tokens | variables),
            messages=messages,
            add_generation_prompt=add_generation_prompt,
        )
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def render(tokenizer, prompt: list[dict], completion: list[dict] | None = None) -> list[int]:
    """Returns token ids through the model's own chat template, which brings its own BOS: none is added.

    Without a completion they end where the model is to answer; with one they include its end of turn.

    Raises:
        NotRendered: the template leaves out tools, tool calls or what a tool returned.
    """
    if completion is None:
        return _render(tokenizer, prompt)
    start, answer = split(tokenizer, prompt, completion)
    return start + answer


def split(tokenizer, prompt: list[dict], completion: list[dict]) -> tuple[list[int], list[int]]:
    """Returns the token ids of a prompt, as generation starts from it, and those of the answer with its end of turn.

    The answer is tokenized on its own where a token would span the two: generation cannot write half a token.
    """
    start, whole = _render(tokenizer, prompt), _render(tokenizer, prompt + completion, is_answered=True)
    is_prefix = whole[: len(start)] == start
    if is_prefix and not _may_think(tokenizer, completion):
        return start, whole[len(start) :]
    prompt_text = _render(tokenizer, prompt, tokenize=False)
    whole_text = _render(tokenizer, prompt + completion, is_answered=True, tokenize=False)
    text = thoughts.answer_text(prompt_text, whole_text, completion[-1].get("content") or "")
    if is_prefix and text == whole_text[len(prompt_text) :]:
        return start, whole[len(start) :]
    if text is not None:
        answer = tokenizer.encode(text, add_special_tokens=False)
        # Some tokenizers put a blank before whatever they are given.
        if tokenizer.decode(start + answer) == tokenizer.decode(start) + text:
            return start, answer
    num_shared = len(commonprefix([start, whole]))
    return whole[:num_shared], whole[num_shared:]


def refusals() -> tuple[type[Exception], ...]:
    """Returns the errors by which a template refuses a conversation."""
    from jinja2 import TemplateError

    return TemplateError, NotRendered, TypeError  # TypeError: it joins text and something else


def answer_text(tokenizer, row: dict, key: str) -> str:
    """Returns what a row's answer says as the model would write it: calls of tools in the form of its own template."""
    _, answer = split(tokenizer, row["prompt"], row[key])
    ends = getattr(tokenizer, "end_token_ids", [tokenizer.eos_token_id])
    last = next((at for at in reversed(range(len(answer))) if answer[at] in ends), len(answer))
    return thoughts.said(tokenizer.decode(answer[:last])).strip()


def fits(tokenizer, row: dict, max_length: int) -> bool:
    """Tells whether a row is within `max_length` tokens, a preference row with either answer.

    Rows that are longer are left out and counted by training and by every gate.
    """
    return num_tokens(tokenizer, row) <= max_length


def num_tokens(tokenizer, row: dict) -> int:
    """Returns the number of tokens of a row, of a preference row that with the longer answer."""
    return max(len(render(tokenizer, row["prompt"], row[key])) for key in answer_keys(row))


def num_trainable_tokens(tokenizer, row: dict, max_length: int) -> int:
    """Returns how many answer tokens training sees within `max_length`, for preferences in the shorter answer."""
    pairs = [split(tokenizer, row["prompt"], row[key]) for key in answer_keys(row)]
    return min(max(0, min(len(start) + len(answer), max_length) - len(start)) for start, answer in pairs)


def answer_keys(row: dict) -> tuple[str, ...]:
    """Returns the keys of a prepared row's answers."""
    return ANSWER_KEYS["preference" if "chosen" in row else "sft"]


def end_token_ids(configured: int | list[int] | None, tokenizer) -> list[int]:
    """Returns the tokens that end an answer.

    Args:
        configured: `eos_token_id` of the generation configuration. Gemma's turns end with a token that only this lists.
    """
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({id_ for id_ in (*ids, tokenizer.eos_token_id) if id_ is not None})


def text_before_answers(tokenizer) -> str:
    """Returns what the template itself writes between a prompt and its answer, such as an empty block of thoughts."""
    from jinja2 import TemplateError

    question, answer = {"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}
    try:
        prompt = _render(tokenizer, [question], tokenize=False)
        whole = _render(tokenizer, [question, answer], is_answered=True, tokenize=False)
    except TemplateError:
        return ""
    before, is_there, _ = (thoughts.answer_text(prompt, whole, "ANSWER") or "").partition("ANSWER")
    return before if is_there else ""


def opens_thoughts(tokenizer, prompt: list[int]) -> bool:
    """Tells whether a rendered prompt ends inside a block of thoughts, which the answer is to close."""
    return thoughts.is_open(tokenizer.decode(prompt[-32:]))


def unread_keys(tokenizer, messages: list[dict]) -> list[str]:
    """Lists the keys of messages that the template does not read, as in `'reasoning_content' of assistant`."""
    present = {(message["role"], key) for message in messages for key in keys.FOR_TEMPLATE if key in message}
    asked = sorted((role, key) for role, key in present if role != "tool")
    return [f"{key!r} of {role}" for role, key in asked if not _reads(tokenizer, tokenizer.chat_template, role, key)]


@cache
def _reads(tokenizer, _template: str, role: str, key: str) -> bool:
    """Tells whether a tokenizer with this template renders a key of the last message of a role."""
    from jinja2 import TemplateError

    roles = ("system", "user", "assistant") if role == "system" else ("user", "assistant")
    messages = [{"role": one, "content": "CONTENT"} | ({key: "PROBE"} if one == role else {}) for one in roles]
    try:
        return "PROBE" in _render(tokenizer, messages, is_answered=True, tokenize=False)
    except TemplateError:
        return False


def asks_for_date(chat_template: str) -> bool:
    """Tells whether what a template renders depends on the day."""
    return "strftime_now" in chat_template


def _render(tokenizer, messages: list[dict], *, is_answered: bool = False, tokenize: bool = True) -> Any:
    """Returns token ids, or text.

    Raises:
        NotRendered: the template leaves out tools, tool calls or what a tool returned.
    """
    tools = tools_of(messages)
    messages = [{key: value for key, value in message.items() if key != "tools"} for message in messages]
    words = {"add_generation_prompt": not is_answered, "tokenize": tokenize}
    rendered = _apply(tokenizer, messages, tools, **words)
    for what, remedy, *without in _without(messages, tools):
        if _is_left_out(rendered, tokenizer, *without, **words):
            raise NotRendered(f"the model's chat template leaves out {what}: {remedy}")
    return rendered


def _apply(tokenizer, messages: list[dict], tools: list[dict], **words: bool) -> Any:
    offered = {"tools": tools} if tools else {}
    return tokenizer.apply_chat_template(messages, return_dict=False, strftime_now=TODAY.strftime, **offered, **words)


def _without(messages: list[dict], tools: list[dict]) -> Iterator[tuple[str, str, list[dict], list[dict]]]:
    """Yields what a template may leave out, the remedy, and the messages and tools without it, or with less of it."""
    if tools:
        yield "'tools'", "use a model whose template renders them, or describe them in the system turn", messages, []
    if any("tool_calls" in message for message in messages):
        fewer = [
            message | {"tool_calls": message["tool_calls"][:-1]} if "tool_calls" in message else message
            for message in messages
        ]
        fewer = [{key: value for key, value in message.items() if value != []} for message in fewer]
        remedy = "use a model whose template renders them, or write each call as text into 'content'"
        yield "'tool_calls', or all but the first of a turn", remedy, fewer, tools
    if any(message["role"] == "tool" for message in messages):
        other = [
            message | {"content": f"{message['content']}?"} if message["role"] == "tool" else message
            for message in messages
        ]
        remedy = "use a model whose template renders them, or give the results in user turns"
        yield "the turns of role 'tool'", remedy, other, tools


def _is_left_out(rendered: Any, tokenizer, messages: list[dict], tools: list[dict], **words: bool) -> bool:
    """Tells whether a conversation renders to the same without something; one that is refused then needs it."""
    try:
        return _apply(tokenizer, messages, tools, **words) == rendered
    except refusals():
        return False


def _may_think(tokenizer, completion: list[dict]) -> bool:
    mark = thoughts.CLOSED.removeprefix("</")  # of either tag
    return mark in str(tokenizer.chat_template) or mark in (completion[-1].get("content") or "")


def _configured_ends(folder: Path) -> int | list[int] | None:
    """Reads what transformers makes the generation configuration of a model folder."""
    if (folder / "generation_config.json").is_file():
        return _json(folder / "generation_config.json").get("eos_token_id")
    config = _json(folder / "config.json")
    return config.get("text_config", config).get("eos_token_id", config.get("eos_token_id"))


def _check_is_there(path: str | Path) -> None:
    if not (Path(path) / "tokenizer.json").is_file():
        raise ValueError(f"{path}: tokenizer.json is missing: give the folder of a model with a fast tokenizer")


def _checked(tokenizer, path: str | Path):
    if not tokenizer.chat_template:
        raise ValueError(
            f"{path}: the tokenizer has no chat template: use an instruct model or add chat_template.jinja"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{path}: the tokenizer has no eos_token: set it in tokenizer_config.json")
    return tokenizer


def _config(folder: Path) -> dict:
    """Reads tokenizer_config.json, and special_tokens_map.json over it where transformers still does so."""
    config = _json(folder / "tokenizer_config.json")
    return config if "added_tokens_decoder" in config else config | _json(folder / "special_tokens_map.json")


def _json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(read_text(path, name=str(path)))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON, {error}: fetch the tokenizer again") from None


def _chat_template(folder: Path, config: dict, *, name: str = "default") -> str | None:
    """Reads a template from its file, else from the configuration, where templates may have names.

    Where there is one named `tool_use`, transformers takes it for conversations with tools.
    """
    path = folder / ("chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja")
    if path.is_file():
        return read_text(path, name=str(path))
    template = config.get("chat_template")
    if isinstance(template, list):
        return next((named["template"] for named in template if named["name"] == name), None)
    return template if name == "default" else None


def _content(token: str | dict) -> str:
    return token["content"] if isinstance(token, dict) else token


def _backend(folder: Path, config: dict, special_tokens: dict[str, str]):
    """Loads tokenizer.json, adds the tokens that only the configuration names, and turns off truncation and padding."""
    from tokenizers import AddedToken, Tokenizer

    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001  the library raises no narrower one
        raise ValueError(f"{path}: not a readable tokenizer, {error}: fetch it again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    listed = sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
    wanted = [AddedToken(**{key: value for key, value in token.items() if key != "__type"}) for _, token in listed]
    wanted += [AddedToken(token, special=True, normalized=False) for token in special_tokens.values()]
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for token in wanted:
        if token.content not in known:
            known.add(token.content)
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer


@cache
def _template(source: str):
    return _environment().from_string(source)


@cache
def _environment():
    """Sets up Jinja as transformers does for chat templates (transformers/utils/chat_template_utils.py)."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Ignores `{% generation %}`, which marks the answer for a mask that we do not use."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_unchanged"), [], [], body).set_lineno(line)

        def _unchanged(self, caller):
            return caller()

    def raise_exception(message):
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        """Replaces Jinja's own filter, which escapes HTML."""
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = TODAY.strftime
    return environment
