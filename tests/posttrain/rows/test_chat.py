import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.rows import chat

TURN = {"role": "user", "content": "Add a task."}
ANSWER = {"role": "assistant", "content": "Done."}
CONVERSATION = [
    {"role": "system", "content": "You are\tthe Task API.  "},
    {"role": "user", "content": " Größe: 5 €, naïve \u200b日本 🙂\n\nfn(a='b')<|im_end|> <b>&amp;</b>"},
    {"role": "assistant", "content": '{"task_id": 5}'},
    {"role": "user", "content": ""},
]
REAL_MODEL = Path(__file__).parents[2] / "build" / "function_calling" / "base"

# What chat templates in the wild make use of.
TEMPLATES = {
    "generation": (
        "{% for m in messages %}{{ m.role }}:\n"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
    ),
    "blocks": (
        "{% for m in messages %}\n    {% if loop.index > 2 %}{% break %}{% endif %}\n{{ m.content }}\n{% endfor %}\n"
    ),
    "json": (
        "{{ messages | tojson }}{{ messages[0] | tojson(indent=2, sort_keys=true) }}{{ tools is none }}{{ documents }}"
    ),
    "date": "{{ strftime_now('%Y') }}{{ messages[0].content.strip() }}{{ pad_token }}{{ bos_token }}",
    "namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content|length %}{% endfor %}"
        "{{ ns.n }}{% macro say(x) %}[{{ x }}]{% endmacro %}{{ say(messages[-1].role) }}"
    ),
}


def assert_same_ids(folder):
    light, heavy = chat.ChatTokenizer(folder), chat.load_tokenizer(folder)
    for messages in (CONVERSATION, CONVERSATION[:2], [TURN]):
        ids = chat.render(light, messages)
        theirs = {"return_dict": False, "strftime_now": chat.TODAY.strftime}
        assert ids == heavy.apply_chat_template(messages, add_generation_prompt=True, **theirs)
        assert light.decode(ids) == heavy.decode(ids)
    whole = chat.render(light, CONVERSATION, [ANSWER])
    assert whole == heavy.apply_chat_template([*CONVERSATION, ANSWER], **theirs)
    assert whole == chat.render(heavy, CONVERSATION, [ANSWER])
    assert light.eos_token_id == heavy.eos_token_id


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A tokenizer to change."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_model / name, tmp_path)
    return tmp_path


def configure(folder, **values):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_token_ids_are_those_of_transformers(tiny_model):
    assert_same_ids(tiny_model)


@pytest.mark.skipif(not REAL_MODEL.is_dir(), reason="made by examples.function_calling.prepare")
def test_token_ids_are_those_of_transformers_on_a_real_model():
    assert_same_ids(REAL_MODEL)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_in_transformers(folder, name):
    (folder / "chat_template.jinja").write_text(TEMPLATES[name])
    assert_same_ids(folder)


def test_a_template_in_the_configuration(folder):
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    configure(folder, chat_template=template.replace("user", "human"))
    assert_same_ids(folder)
    configure(folder, chat_template=[{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}])
    assert_same_ids(folder)


def test_tokens_that_only_the_configuration_names(folder):
    configure(folder, bos_token="<bos>", unk_token={"__type": "AddedToken", "content": "API", "lstrip": False})
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ unk_token }}" + template)
    assert_same_ids(folder)


def test_tokens_in_files_that_older_versions_wrote(folder):
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    assert_same_ids(folder)
    token = {"content": "Task", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    configure(folder, added_tokens_decoder={"700": token | {"special": True}, "701": token | {"content": "API."}})
    assert_same_ids(folder)


def test_truncation_and_padding_of_the_file_do_not_count(folder):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=500)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert_same_ids(folder)


def test_a_template_may_refuse_and_do_no_harm(folder):
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError

    tokenizer = chat.ChatTokenizer(folder)
    tokenizer.chat_template = "{{ raise_exception('no system turns') }}"
    with pytest.raises(TemplateError, match="no system turns"):
        chat.render(tokenizer, [TURN])
    tokenizer.chat_template = "{{ messages.append(1) }}"
    with pytest.raises(SecurityError):
        chat.render(tokenizer, [TURN])


def test_render_holds_prompt_then_answer_then_end_of_turn(tiny_model):
    tokenizer = chat.load_tokenizer(tiny_model)
    prompt, whole = chat.render(tokenizer, [TURN]), chat.render(tokenizer, [TURN], [ANSWER])
    assert whole[: len(prompt)] == prompt
    assert tokenizer.decode(prompt) == "<|im_start|>user\nAdd a task.<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(whole[len(prompt) :]) == "Done.<|im_end|>\n"


def test_render_adds_no_second_bos(tiny_model):
    tokenizer = chat.load_tokenizer(tiny_model)
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    ids = chat.render(tokenizer, [TURN], [ANSWER])
    assert ids.count(tokenizer.bos_token_id) == 1


def test_trainable_tokens_are_those_of_the_answer_within_the_length(tiny_model):
    tokenizer = chat.load_tokenizer(tiny_model)
    row = {"prompt": [TURN], "completion": [ANSWER]}
    num_prompt, num_whole = len(chat.render(tokenizer, [TURN])), len(chat.render(tokenizer, [TURN], [ANSWER]))
    assert chat.num_trainable_tokens(tokenizer, row, 1000) == num_whole - num_prompt > 0
    assert chat.num_trainable_tokens(tokenizer, row, num_prompt + 1) == 1
    assert chat.num_trainable_tokens(tokenizer, row, num_prompt) == 0
    longer = {"role": "assistant", "content": "Done. " * 9}
    pair = {"prompt": [TURN], "chosen": [longer], "rejected": [ANSWER]}
    assert chat.num_trainable_tokens(tokenizer, pair, 1000) == num_whole - num_prompt


TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
THINKING = {  # how templates in the wild treat thoughts: what training learns after the prompt of generation
    "Qwen3, in the last turn": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
        "<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "<|im_start|>assistant\n",
        "<think>\n\n</think>\n\nDone.<|im_end|>\n",
    ),
    "Qwen3 2507, opened for generation": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
        "<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
        "<|im_start|>assistant\n<think>\n",
        "\n</think>\n\nDone.<|im_end|>\n",
    ),
    "QwQ, opened for generation alone": (
        TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
        "<|im_start|>assistant\n<think>\n",
        "\n</think>\n\nDone.<|im_end|>\n",
    ),
    "without thoughts, closed for generation alone": (
        TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "Done.<|im_end|>\n",
    ),
}


READS_THOUGHTS = TURNS.replace(
    "{{ m.content }}",
    "{% if m.reasoning_content is string %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}",
)


@pytest.mark.parametrize("load", [chat.load_tokenizer, chat.ChatTokenizer])
def test_thoughts_are_learned_where_the_template_reads_them(folder, load):
    thought = ANSWER | {"reasoning_content": "First I count."}
    begin = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    (folder / "chat_template.jinja").write_text(READS_THOUGHTS + begin)
    tokenizer = load(folder)
    _, answer = chat.split(tokenizer, [TURN], [thought])
    assert tokenizer.decode(answer) == "<think>\nFirst I count.\n</think>\n\nDone.<|im_end|>\n"
    assert chat.unread_keys(tokenizer, [TURN, thought]) == []
    other = [TURN | {"name": "Ann"}, ANSWER | {"thinking": "First I count."}]
    assert chat.unread_keys(tokenizer, other) == ["'thinking' of assistant", "'name' of user"]
    tokenizer.chat_template = TURNS
    assert chat.unread_keys(tokenizer, [TURN, thought]) == ["'reasoning_content' of assistant"]
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert chat.unread_keys(tokenizer, [TURN, thought]) == ["'reasoning_content' of assistant"]


@pytest.mark.parametrize("load", [chat.load_tokenizer, chat.ChatTokenizer])
@pytest.mark.parametrize("name", THINKING)
def test_training_goes_on_where_generation_starts(folder, name, load):
    template, start, taught = THINKING[name]
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = load(folder)
    prompt, answer = chat.split(tokenizer, [TURN], [ANSWER])
    assert prompt == chat.render(tokenizer, [TURN])
    assert tokenizer.decode(prompt).endswith(start)
    assert tokenizer.decode(answer) == taught
    assert chat.render(tokenizer, [TURN], [ANSWER]) == prompt + answer
    assert chat.opens_thoughts(tokenizer, prompt) == start.endswith("<think>\n")


def test_thoughts_that_the_template_cuts_are_taught(folder):
    cut = "{{ m.content.split('</think>')[-1].strip() }}"
    (folder / "chat_template.jinja").write_text(
        THINKING["QwQ, opened for generation alone"][0].replace("{{ m.content }}", cut)
    )
    tokenizer = chat.ChatTokenizer(folder)
    answer = {"role": "assistant", "content": "<think>\nIt is short.\n</think>\n\nDone."}
    assert tokenizer.decode(chat.split(tokenizer, [TURN], [answer])[1]) == "It is short.\n</think>\n\nDone.<|im_end|>\n"


def test_no_token_spans_prompt_and_answer(folder):
    """Generation starts from the whole prompt, so training must not replace its last token by a longer one."""
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    (folder / "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}assistant: Do{% endif %}")
    tokenizer = chat.ChatTokenizer(folder)
    prompt, answer = chat.split(tokenizer, [TURN], [ANSWER])
    assert prompt == chat.render(tokenizer, [TURN])
    assert (tokenizer.decode(prompt)[-2:], tokenizer.decode(answer)) == ("Do", "ne.<|im_end|>")


def test_a_prompt_that_changes_with_its_answer_is_shared_as_far_as_it_goes(folder):
    (folder / "chat_template.jinja").write_text(TURNS + "{% if add_generation_prompt %}your turn{% endif %}")
    tokenizer = chat.ChatTokenizer(folder)
    prompt, answer = chat.split(tokenizer, [TURN], [ANSWER])
    assert tokenizer.decode(prompt).endswith("Add a task.<|im_end|>\n")
    assert tokenizer.decode(answer) == "<|im_start|>assistant\nDone.<|im_end|>\n"


@pytest.mark.parametrize(
    ("template", "before"),
    [
        (THINKING["Qwen3, in the last turn"][0], "<think>\n\n</think>\n\n"),
        ("{{ messages[0].content }}{% if messages[1] %} {{ messages[1].content }}{% endif %}", " "),
        ("{{ messages[0].content }}{% if messages[1] %}final: {{ messages[1].content }}{% endif %}", "final: "),
        (TURNS, ""),
        ("{{ raise_exception('no') }}", ""),
    ],
)
def test_what_the_template_writes_before_an_answer(folder, template, before):
    if template == TURNS:
        template += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    assert chat.text_before_answers(chat.ChatTokenizer(folder)) == before


@pytest.mark.parametrize("load", [chat.load_tokenizer, chat.ChatTokenizer])
def test_the_date_of_a_template_is_the_same_on_every_day(folder, load):
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}")
    assert chat.load_tokenizer(folder).decode(chat.render(load(folder), [TURN])) == "26 Jul 2024 Add a task."
    assert chat.asks_for_date(load(folder).chat_template)


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({"generation_config.json": {"eos_token_id": [0, 2]}}, [0, 2]),
        ({"generation_config.json": {"eos_token_id": 3}}, [2, 3]),
        ({"generation_config.json": {}}, [2]),
        ({"config.json": {"eos_token_id": [0, 1]}}, [0, 1, 2]),
        ({"config.json": {"text_config": {"eos_token_id": 1}}}, [1, 2]),
        ({}, [2]),
    ],
)
def test_tokens_that_end_a_turn(folder, files, ends):
    (folder / "config.json").write_text("{}")
    for name, settings in files.items():
        (folder / name).write_text(json.dumps(settings))
    assert chat.ChatTokenizer(folder).end_token_ids == ends


def test_rows_that_fit(tiny_model):
    tokenizer = chat.ChatTokenizer(tiny_model)
    row = {"prompt": [TURN], "completion": [ANSWER]}
    pair = {"prompt": [TURN], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "Done. " * 20}]}
    num_tokens = len(chat.render(tokenizer, [TURN], [ANSWER]))
    assert chat.fits(tokenizer, row, num_tokens) and not chat.fits(tokenizer, row, num_tokens - 1)
    assert not chat.fits(tokenizer, pair, num_tokens)


@pytest.mark.parametrize("load", [chat.load_tokenizer, chat.ChatTokenizer])
def test_a_tokenizer_that_cannot_render_is_refused(folder, load):
    configure(folder, eos_token=None)
    with pytest.raises(ValueError, match="has no eos_token"):
        load(folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer.json is missing"):
        load(folder)


def test_damaged_files_are_named(folder):
    for damaged in ("{", '{"a":' * 100_000):
        (folder / "tokenizer_config.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"tokenizer_config.json: not valid JSON"):
            chat.ChatTokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json: not a readable tokenizer"):
        chat.ChatTokenizer(folder)


def test_needs_neither_torch_nor_transformers(tiny_model):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from posttrain.rows import chat\n"
        "tokenizer = chat.ChatTokenizer(sys.argv[1])\n"
        "print(len(chat.render(tokenizer, [{'role': 'user', 'content': 'Add a task.'}])))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tiny_model)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 5
