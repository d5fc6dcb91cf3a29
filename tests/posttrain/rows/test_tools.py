import csv
import json

import pytest

from posttrain.rows import chat, formats
from posttrain.rows.formats import check_row, content_key, convert, empty_key, message_text, references_of
from posttrain.rows.sources import open_data_set
from posttrain.rows.tools import call_values, read_calls, read_tools
from tests.tool_chat import ASKED, CALL, CALLS, DONE, RESULT, TEMPLATE, TOOL, WRITTEN, model_that_calls, raw_row

MESSAGES = [ASKED, CALLS, RESULT, DONE]
TWICE = CALLS | {"tool_calls": [CALL, CALL]}
FIRST = ASKED | {"tools": [TOOL]}


def converted(raw, kind="sft"):
    return convert([raw], kind=kind, source="rows.jsonl")[0]


def refused(raw, kind="sft"):
    with pytest.raises(ValueError) as caught:
        converted(raw, kind)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        [{"type": "function", "function": {"name": "add_task", "arguments": '{"title": "rent"}'}}],  # as OpenAI has it
        [{"name": "add_task", "arguments": {"title": "rent"}}],  # as TRL's own tests have it
        json.dumps([CALL]),
        CALL,
    ],
)
def test_calls_have_one_normal_form(calls):
    assert read_calls(calls) == [CALL]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    assert converted({"messages": [ASKED, message, RESULT, DONE], "tools": [TOOL]})[0]["completion"] == [CALLS]


@pytest.mark.parametrize("form", ["function", "bare"])
def test_a_csv_cell_with_a_list_of_calls_makes_these_calls(form, tmp_path):
    calls = {"function": [CALL, CALL], "bare": [CALL["function"]]}[form]
    cells = ["Pay the rent.", json.dumps(calls), json.dumps([TOOL])]
    with open(tmp_path / "calls.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt", "completion", "tools"], cells])
    with open_data_set(str(tmp_path / "calls.csv")) as data_set:
        [row] = convert(data_set.rows, kind="sft", source="calls.csv")[0]
    assert row["completion"] == [CALLS | {"tool_calls": [CALL] * len(calls)}]
    assert row["prompt"] == [{"role": "user", "content": "Pay the rent.", "tools": [TOOL]}]
    pair = {"prompt": "Pay the rent.", "chosen": calls, "rejected": "Paid.", "tools": [TOOL]}
    assert converted(pair, "preference")[0]["chosen"] == row["completion"]
    assert "offers no 'tools'" in refused(pair | {"tools": None}, "preference")


@pytest.mark.parametrize("offered", [[TOOL], [TOOL["function"]], json.dumps([TOOL]), [json.dumps(TOOL)]])
def test_tools_have_one_normal_form(offered):
    assert read_tools(offered) == [TOOL]


@pytest.mark.parametrize("offered", [None, [], "", "[]"])
def test_no_tools_are_no_tools(offered):
    raw = {"messages": [ASKED, DONE], "tools": offered}
    assert converted(raw) == [{"id": "row-1", "prompt": [ASKED], "completion": [DONE]}]


def test_each_assistant_turn_is_a_row_and_what_a_tool_returned_is_context():
    rows = converted({"messages": MESSAGES, "tools": [TOOL]})
    assert [row["prompt"] for row in rows] == [[FIRST], [FIRST, CALLS, RESULT]]
    assert [row["completion"] for row in rows] == [[CALLS], [DONE]]
    assert [references_of(row) for row in rows] == [
        [{"name": "add_task", "arguments": {"title": "rent"}}],
        ["Added as 5."],
    ]
    for row in rows:
        check_row(row, "sft")
        assert empty_key(row, "sft") is None


def test_ids_of_calls_are_kept():
    call = CALL | {"id": "call12345"}
    result = RESULT | {"tool_call_id": "call12345"}
    row = converted({"messages": [ASKED, CALLS | {"tool_calls": [call]}, result, DONE], "tools": [TOOL]})[1]
    assert row["prompt"][1:] == [CALLS | {"tool_calls": [call]}, result]


@pytest.mark.parametrize("prompt", [[ASKED], None])
def test_pairs_of_calls_with_an_explicit_and_an_implicit_prompt(prompt):
    other = CALLS | {"tool_calls": [{"type": "function", "function": {"name": "add_task", "arguments": {}}}]}
    turns = [] if prompt else [ASKED]
    raw = {"chosen": [*turns, CALLS], "rejected": [*turns, other], "tools": [TOOL]} | (
        {"prompt": prompt} if prompt else {}
    )
    assert converted(raw, "preference") == [{"id": "row-1", "prompt": [FIRST], "chosen": [CALLS], "rejected": [other]}]


def test_several_calls_are_a_list_and_text_before_them_counts():
    two = CALLS | {"content": "At once.", "tool_calls": [CALL, CALL]}
    assert call_values(two["tool_calls"]) == [{"name": "add_task", "arguments": {"title": "rent"}}] * 2
    assert message_text(two).startswith("At once.\n[{")


def test_rows_that_differ_in_tools_or_calls_alone_are_no_duplicates():
    other = json.loads(json.dumps(TOOL).replace("add_task", "drop_task"))
    rows = [converted({"messages": MESSAGES, "tools": some})[0] for some in ([TOOL], [TOOL, other])]
    text = converted({"messages": [ASKED, DONE], "tools": [TOOL]})
    assert len({content_key(row) for row in [*rows, *text]}) == 3


def test_what_is_no_tool_and_no_call_is_refused():
    assert "'tools' is the text '{', which is not JSON" in refused({"messages": MESSAGES, "tools": "{"})
    assert "'tools' holds {'type': 'function'}: give" in refused(
        {"messages": MESSAGES, "tools": [{"type": "function"}]}
    )
    assert "offers no 'tools': give the row its tools" in refused({"messages": MESSAGES})
    for calls, words in (
        ([{"function": {"arguments": {}}}], "'tool_calls' holds"),
        ([{"function": {"name": "a", "arguments": "{"}}], "the arguments of a is the text '{', which is not JSON"),
        ([{"function": {"name": "a", "arguments": [1]}}], "a call of a has the arguments [1]"),
        ([{"function": {"name": "a", "arguments": {"x": "\ud800"}}}], "UTF-16"),
        (7, "'tool_calls' is 7"),
    ):
        messages = [ASKED, {"role": "assistant", "tool_calls": calls}]
        assert words in refused({"messages": messages, "tools": [TOOL]})
    assert "only an assistant calls tools" in refused(
        {"messages": [ASKED | {"tool_calls": [CALL]}, DONE], "tools": [TOOL]}
    )


def test_the_template_s_own_words_are_the_target_and_the_tools_are_context(calling_model):
    tokenizer = chat.load_tokenizer(calling_model)
    light = chat.ChatTokenizer(calling_model)
    first, second = converted({"messages": MESSAGES, "tools": [TOOL]})
    for some in (light, tokenizer):
        prompt, whole = chat.render(some, first["prompt"]), chat.render(some, first["prompt"], first["completion"])
        offered = f"<|im_start|>system\n<tools>\n{json.dumps(TOOL)}\n</tools><|im_end|>\n"
        asked = f"{offered}<|im_start|>user\nAdd rent.<|im_end|>\n<|im_start|>assistant\n"
        assert some.decode(prompt) == asked
        assert some.decode(whole) == f"{asked}{WRITTEN}<|im_end|>\n"
        assert whole[: len(prompt)] == prompt
        assert chat.answer_text(some, first, "completion") == WRITTEN
        after = f"{asked}{WRITTEN}<|im_end|>\n<|im_start|>tool\n{RESULT['content']}<|im_end|>\n<|im_start|>assistant\n"
        assert some.decode(chat.render(some, second["prompt"])) == after


def test_ids_are_those_of_transformers_given_the_tools(calling_model):
    tokenizer = chat.load_tokenizer(calling_model)
    row = converted({"messages": MESSAGES, "tools": [TOOL]})[1]
    expected = tokenizer.apply_chat_template(MESSAGES, tools=[TOOL], return_dict=False)
    assert chat.render(tokenizer, row["prompt"], row["completion"]) == expected
    assert chat.render(chat.ChatTokenizer(calling_model), row["prompt"], row["completion"]) == expected


@pytest.mark.parametrize("from_file", [True, False])
def test_a_template_for_tools_beside_the_default_one(calling_model, tmp_path, from_file):
    folder = model_that_calls(calling_model, tmp_path / "model")
    plain = TEMPLATE[TEMPLATE.index("{% for message in messages") :]
    if from_file:
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TEMPLATE)
        (folder / "chat_template.jinja").write_text(plain)
    else:
        (folder / "chat_template.jinja").unlink()
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings["chat_template"] = [{"name": "default", "template": plain}, {"name": "tool_use", "template": TEMPLATE}]
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    light, heavy = chat.ChatTokenizer(folder), chat.load_tokenizer(folder)
    for prompt in ([FIRST], [ASKED]):
        assert chat.render(light, prompt) == chat.render(heavy, prompt)
        assert ("<tools>" in light.decode(chat.render(light, prompt))) == ("tools" in prompt[0])


@pytest.mark.parametrize(
    ("part", "instead", "messages", "words"),
    [
        ("{% if tools %}", "{% if false %}", [ASKED, DONE], "'tools': use a model whose"),
        ("in message.tool_calls or []", "in []", [ASKED, CALLS], "'tool_calls'"),
        ("message.tool_calls or []", "(message.tool_calls or [])[:1]", [ASKED, TWICE], "all but the first"),
        ("{{ message.content }}", "{{ message.content if message.role != 'tool' }}", MESSAGES, "turns of role 'tool'"),
    ],
)
@pytest.mark.parametrize("load", [chat.load_tokenizer, chat.ChatTokenizer])
def test_what_a_template_leaves_out_is_named(calling_model, part, instead, messages, words, load):
    tokenizer = load(calling_model)
    tokenizer.chat_template = TEMPLATE.replace(part, instead)
    row = converted({"messages": messages, "tools": [TOOL]})[-1]
    with pytest.raises(chat.NotRendered, match=f"^the model's chat template leaves out .*{words}"):
        chat.render(tokenizer, row["prompt"], row["completion"])


def test_the_task_api_s_own_template_renders_no_tools(tiny_model):
    row = formats.convert([raw_row()], kind="sft", source="x")[0][0]
    with pytest.raises(chat.NotRendered, match="leaves out 'tools'"):
        chat.render(chat.ChatTokenizer(tiny_model), row["prompt"])
