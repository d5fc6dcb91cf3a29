"""Conversations as token ids, through the model's own chat template: the same in training and in judging.

tokenizer of a model folder, messages -> token ids

There are two tokenizers. `load_tokenizer` loads that of transformers, which trains and generates. `ChatTokenizer` only
renders conversations, to the same ids, and loads in a tenth of the time: importing transformers takes seconds.
"""

import json
from datetime import datetime
from functools import cache
from itertools import zip_longest
from pathlib import Path

from posttrain.rows.files import read_text

# The names that a chat template may use; their values come from the tokenizer's configuration.
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def load_tokenizer(path: str | Path):
    """Loads the fast tokenizer of a model folder with transformers, without torch.

    Its padding side is up to the caller: left to generate, right to train.

    Raises:
        ValueError: there is none, or it has no chat template or no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    _check_is_there(path)
    return _checked(AutoTokenizer.from_pretrained(path, local_files_only=True), path)


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
        self.special_tokens = {name: _content(config[name]) for name in SPECIAL_TOKENS if config.get(name)}
        self._tokenizer = _backend(Path(path), config, self.special_tokens)
        _checked(self, path)
        _environment()  # imported now, so that forked processes find it there

    @property
    def eos_token_id(self) -> int | None:
        token = self.special_tokens.get("eos_token")
        return None if token is None else self._tokenizer.token_to_id(token)

    def apply_chat_template(self, messages: list[dict], *, add_generation_prompt: bool, **_) -> list[int]:
        """Returns token ids, as transformers does; its further arguments only ask for that and are ignored."""
        text = _template(self.chat_template).render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self.special_tokens,
        )
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def render(tokenizer, prompt: list[dict], completion: list[dict] | None = None) -> list[int]:
    """Returns token ids through the model's own chat template, which brings its own BOS: none is added.

    Without a completion they end where the model is to answer; with one they include its end of turn.
    """
    return tokenizer.apply_chat_template(
        prompt + (completion or []), add_generation_prompt=completion is None, tokenize=True, return_dict=False
    )


def num_trainable_tokens(tokenizer, row: dict, max_length: int) -> int:
    """Returns how many answer tokens training sees within `max_length`, for preferences in the shorter answer."""
    prompt = render(tokenizer, row["prompt"])
    keys = [key for key in ("completion", "chosen", "rejected") if key in row]
    return min(num_answer_tokens(prompt, render(tokenizer, row["prompt"], row[key]), max_length) for key in keys)


def num_answer_tokens(prompt: list[int], whole: list[int], max_length: int) -> int:
    """Returns how many tokens `whole`, cut at `max_length`, has after those that it shares with `prompt`."""
    num_shared = len(prompt)
    if whole[:num_shared] != prompt:  # a first word of the answer can merge with the prompt's last token
        num_shared = next(index for index, pair in enumerate(zip_longest(prompt, whole)) if pair[0] != pair[1])
    return max(0, min(len(whole), max_length) - num_shared)


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


def _chat_template(folder: Path, config: dict) -> str | None:
    """Reads the template from its file, else from the configuration, where it may be the one named `default`."""
    path = folder / "chat_template.jinja"
    template = read_text(path, name=str(path)) if path.is_file() else config.get("chat_template")
    if isinstance(template, list):
        template = next((named["template"] for named in template if named["name"] == "default"), None)
    return template


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
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
