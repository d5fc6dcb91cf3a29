import json

import pytest

from posttrain.rows.formats import convert
from tests.tool_chat import ASKED, CALLS, DONE, RESULT, TOOL

SYSTEM = {"role": "system", "content": "You are the Task API."}
WORSE = {"role": "assistant", "content": "No."}


def converted(raw, kind="sft"):
    return convert([raw], kind=kind, source="rows.jsonl")


def refused(raw, kind="sft"):
    with pytest.raises(ValueError) as caught:
        converted(raw, kind)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def turn(name, value, **more):
    return {"from": name, "value": value, **more}


@pytest.mark.parametrize(
    "conversation",
    [
        [turn("human", "Add rent."), turn("gpt", "Added as 5.")],
        [turn("user", "Add rent."), turn("assistant", "Added as 5.")],
        [ASKED, DONE],  # as TRL takes it too
    ],
)
def test_share_gpt_rows_are_conversations(conversation):
    rows, name = converted({"id": 3, "conversations": conversation})
    assert (rows, name) == ([{"id": "3", "prompt": [ASKED], "completion": [DONE]}], "ShareGPT (conversations)")
    rows, _ = converted({"conversations": [turn("system", SYSTEM["content"]), *conversation]})
    assert rows[0]["prompt"] == [SYSTEM, ASKED]
    rows, _ = converted({"conversations": conversation, "system": SYSTEM["content"]})
    assert rows[0]["prompt"] == [SYSTEM, ASKED]


@pytest.mark.parametrize("offered", [[TOOL["function"]], json.dumps([TOOL])])
@pytest.mark.parametrize("arguments", [{"title": "rent"}, '{"title": "rent"}'])
def test_calls_of_share_gpt_are_tool_calls(offered, arguments):
    call = turn("function_call", json.dumps({"name": "add_task", "arguments": arguments}))
    conversation = [
        turn("human", "Add rent."),
        call,
        turn("observation", RESULT["content"]),
        turn("gpt", "Added as 5."),
    ]
    rows, _ = converted({"conversations": conversation, "tools": offered})
    result = {"role": "tool", "content": RESULT["content"]}
    assert rows[0]["prompt"] == [ASKED | {"tools": [TOOL]}]
    assert [row["completion"] for row in rows] == [[CALLS], [DONE]]
    assert rows[1]["prompt"] == [ASKED | {"tools": [TOOL]}, CALLS, result]


@pytest.mark.parametrize("as_list", [True, False])
def test_share_gpt_pairs(as_list):
    better, worse = turn("gpt", "Added as 5."), turn("gpt", "No.")
    answers = {"chosen": [better], "rejected": [worse]} if as_list else {"chosen": better, "rejected": worse}
    rows, _ = converted({"conversations": [turn("human", "Add rent.")], **answers}, "preference")
    assert rows == [{"id": "row-1", "prompt": [ASKED], "chosen": [DONE], "rejected": [WORSE]}]


def test_alpaca_rows_join_instruction_and_input():
    raw = {"instruction": "Add a task.", "input": "rent", "output": "Added as 5.", "text": "Below is an instruction"}
    rows, name = converted(raw)
    asked = {"role": "user", "content": "Add a task.\nrent"}
    assert (rows, name) == ([{"id": "row-1", "prompt": [asked], "completion": [DONE]}], "Alpaca (instruction)")
    rows, _ = converted({"instruction": "Add rent.", "input": "", "output": "Added as 5."})
    assert rows[0]["prompt"] == [ASKED]


def test_alpaca_s_system_and_history_are_context_alone():
    history = [["Hello.", "Hi."], ["Who are you?", "The Task API."]]
    raw = {"instruction": "Add rent.", "output": "Added as 5.", "system": SYSTEM["content"], "history": history}
    [row], _ = converted(raw)
    assert [message["role"] for message in row["prompt"]] == ["system", *["user", "assistant"] * 2, "user"]
    assert row["prompt"][4]["content"] == "The Task API."
    assert row["completion"] == [DONE]


def test_alpaca_pairs():
    raw = {"instruction": "Add", "input": "rent.", "chosen": "Added as 5.", "rejected": "No."}
    [row], _ = converted(raw, "preference")
    assert (row["prompt"][0]["content"], row["chosen"], row["rejected"]) == ("Add\nrent.", [DONE], [WORSE])


def test_a_row_in_two_formats_is_refused():
    raw = {"prompt": "Add rent.", "completion": "Added as 5.", "conversations": [turn("human", "x")]}
    assert "'conversations' [{'from': 'human', 'value': 'x'}] belongs to another format" in refused(raw)
    assert converted(raw | {"conversations": None})[1] == "prompt, completion (plain text)"


def test_marks_and_text_of_messages_count_here_too():
    draft = turn("gpt", "Draft.", weight=0)
    turns = [turn("human", "Add rent."), draft, turn("human", "Again."), turn("gpt", "Added as 5.", train=True)]
    for conversations in (turns, json.dumps(turns), str(turns)):
        [row] = converted({"conversations": conversations, "system_prompt": "Be brief."})[0]
        assert [message["role"] for message in row["prompt"]] == ["system", "user", "assistant", "user"]
        assert row["completion"] == [DONE]


def test_what_cannot_be_converted_is_refused():
    assert "give 'from' (system, human," in refused({"conversations": [turn("narrator", "x")]})
    assert "'value', a text" in refused({"conversations": [turn("human", 3)]})
    assert "'conversations' is a str" in refused({"conversations": "[{'from': 'human'}]"})
    both = {"conversations": [turn("system", "a"), turn("human", "b"), turn("gpt", "c")], "system": "d"}
    assert "remove one of the two" in refused(both)
    assert "'input' is '3': give a text" in refused({"instruction": "a", "input": 3, "output": "b"})
    assert "give a list of pairs" in refused({"instruction": "a", "output": "b", "history": ["c"]})
    assert "which is not JSON" in refused({"conversations": [turn("human", "a"), turn("function_call", "add()")]})
    assert "'chosen' missing" in refused(
        {"conversations": [turn("human", "a")], "rejected": turn("gpt", "b")}, "preference"
    )


def test_alpaca_rows_without_answers_are_no_pairs():
    assert "'chosen' and 'rejected' missing" in refused({"instruction": "a", "output": "b"}, "preference")


@pytest.mark.parametrize("raw", [{"text": "Q: a A: b"}, {"text": "<|im_start|>user", "source": "web"}, {"text": ""}])
def test_text_rows_are_refused_with_the_reason(raw):
    assert "nothing tells the answer from its prompt" in refused(raw)
    assert "nothing tells the answer from its prompt" in refused(raw, "preference")
