import pytest

from posttrain.config import OutputFormat
from tests.tool_chat import ASKED, CALLS, RESULT, TOOL, WRITTEN
from validators.answers import judge_format
from validators.calls import as_json
from validators.inference import Answer

OFFERED = [ASKED | {"tools": [TOOL]}]
JSON = '{"name": "add_task", "arguments": {"title": "rent"}}'


@pytest.mark.parametrize(
    "text",
    [
        JSON,
        WRITTEN,
        f"I will add it.\n{WRITTEN}",
        f'[TOOL_CALLS][{JSON[:-1]}, "id": "call12345"}}]',
        f"[TOOL_CALLS] [{JSON}]",
        '<|python_tag|>{"name": "add_task", "parameters": {"title": "rent"}}',
        '{"name": "add_task", "parameters": {"title": "rent"}}',
        f"<|tool_call|>[{JSON}]<|/tool_call|>",
    ],
)
def test_calls_are_read_whatever_marks_are_around_them(text):
    assert as_json(text, OFFERED) == JSON
    assert as_json(text.replace("rent", "März"), OFFERED) == JSON.replace("rent", "März")


@pytest.mark.parametrize(
    "text", [f"{WRITTEN}\n{WRITTEN}", f"[TOOL_CALLS][{JSON}, {JSON}]", f"<|python_tag|>{JSON}; {JSON}"]
)
def test_several_calls_are_a_list(text):
    assert as_json(text, OFFERED) == f"[{JSON}, {JSON}]"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Added.",
        f"Sure: {JSON}",
        f"{WRITTEN} Done.",
        f"<tool_call>{JSON[:-2]}</tool_call>",
        "<tool_call></tool_call>",
        '<tool_call>{"name": "a", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "a", "name": "b", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "a", "arguments": {"x": NaN}}</tool_call>',
        "<tool_call>" + "[" * 100_000,
        '{"id": 3}',
        "3",
    ],
)
def test_anything_else_is_left_as_it_is(text):
    assert as_json(text, OFFERED) == text


def test_without_tools_a_mark_is_a_wrong_word():
    assert as_json(WRITTEN, [ASKED]) == WRITTEN


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (WRITTEN, None),
        (f"{WRITTEN}{WRITTEN}", None),
        (f"[TOOL_CALLS][{JSON}]", None),
        (WRITTEN.replace("add_task", "drop_task"), "calls a function that was not offered"),
        (f"{WRITTEN}{WRITTEN.replace('add_task', 'drop_task')}", "calls a function that was not offered"),
        ("Added.", "is not a call with name and arguments"),
        ("[]", "is not a call with name and arguments"),
        (f"<|im_start|>{WRITTEN}", "contains the special token <|im_start|>"),
    ],
)
def test_the_form_of_an_answer_where_tools_are_offered(text, fault):
    rule, markers = OutputFormat(kind="tool_call"), ["[TOOL_CALLS]", "<|im_start|>"]
    [judged] = judge_format([OFFERED], [Answer(text, True, 7)], rule, markers=markers)
    assert judged.fault == fault


def test_what_a_tool_returned_is_answered_in_words_or_with_another_call():
    prompt = [*OFFERED, CALLS, RESULT]
    texts = ["Added as 5.", WRITTEN, " ", WRITTEN.replace("add_task", "drop_task")]
    judged = judge_format(
        [prompt] * 4, [Answer(text, True, 7) for text in texts], OutputFormat(kind="tool_call"), markers=[]
    )
    assert [one.fault for one in judged] == [None, None, "is empty", "calls a function that was not offered"]


def test_where_none_are_offered_a_mark_is_a_special_token():
    [judged] = judge_format([[ASKED]], [Answer("[TOOL_CALLS]x", True, 7)], OutputFormat(), markers=["[TOOL_CALLS]"])
    assert judged.fault == "contains the special token [TOOL_CALLS]"
