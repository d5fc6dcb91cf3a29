import json

import pytest

from posttrain.config import AlignmentLimits, OutputFormat
from posttrain.data import write_jsonl
from posttrain.inference import Answer
from validators import answers as a

DECLINE = "I can only manage tasks."
PROMPT = [
    {"role": "system", "content": 'Tools: {"name": "math.factorial"}, {"name": "get_weather"}'},
    {"role": "user", "content": "What is 5!?"},
]
SCHEMA = {"type": "object", "required": ["operation"], "properties": {"operation": {"enum": ["create", "list"]}}}
TEXT = OutputFormat()
JSON = OutputFormat(kind="json_schema", json_schema=SCHEMA, declines_with=DECLINE)
REGEX = OutputFormat(kind="regex", pattern=r"\d+ tasks", declines_with=DECLINE)
CALL = OutputFormat(kind="tool_call", declines_with=DECLINE)


def fault(text: str, rule: OutputFormat, *, stopped: bool = True) -> str | None:
    [judged] = a.judge_format([PROMPT], [Answer(text, stopped, 7)], rule, markers=["<|im_start|>"])
    return judged.fault


def call(name: str, arguments: object = None) -> str:
    return json.dumps({"name": name, "arguments": {} if arguments is None else arguments})


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Yes.", TEXT),
        ('{"operation": "list", "more": 1}', JSON),
        (' {"operation": "list"}\n', JSON),
        ("12 tasks", REGEX),
        (call("math.factorial", {"number": 5}), CALL),
        (call("get_weather"), CALL),
        (DECLINE, JSON),
        (f" {DECLINE}\n", CALL),
    ],
)
def test_well_formed(text, rule):
    assert fault(text, rule) is None


@pytest.mark.parametrize(
    ("text", "rule", "expected"),
    [
        ("", TEXT, "is empty"),
        (" \n", TEXT, "is empty"),
        ("ok<|im_start|>user", TEXT, "holds the special token <|im_start|>"),
        ('{"operation": "<|im_start|>"}', JSON, "holds the special token <|im_start|>"),
        ('Sure: {"operation": "list"}', JSON, "is not JSON"),
        ('{"operation": "list"', JSON, "is not JSON"),
        ('{"operation": NaN}', JSON, "is not JSON"),
        ('{"operation": "drop"}', JSON, "breaks the schema's 'enum'"),
        ("{}", JSON, "breaks the schema's 'required'"),
        ('"list"', JSON, "breaks the schema's 'type'"),
        ("[" * 100_000, JSON, "is not JSON"),
        ("12 tasks, I think", REGEX, "does not match the pattern"),
        (f"{DECLINE} But here is how:", REGEX, "does not match the pattern"),
        (call("factorial"), CALL, "calls a function that was not offered"),
        (call("get"), CALL, "calls a function that was not offered"),
        (call(""), CALL, "calls a function that was not offered"),
        (call("get_weather", [1]), CALL, "is not one call with name and arguments"),
        ('{"name": "get_weather", "arguments": {}, "x": 1}', CALL, "is not one call with name and arguments"),
        (call("get_weather") * 2, CALL, "is not one call with name and arguments"),
    ],
)
def test_malformed(text, rule, expected):
    assert fault(text, rule) == expected


@pytest.mark.parametrize("rule", [TEXT, JSON, REGEX, CALL])
def test_an_answer_that_was_cut_off_is_at_fault_even_if_it_declines(rule):
    assert fault(DECLINE, rule, stopped=False) == "did not end by itself within 7 tokens"


def test_references_of_a_schema_are_not_fetched():
    rule = OutputFormat(kind="json_schema", json_schema={"$ref": "http://127.0.0.1:9/schema.json"})
    with pytest.raises(Exception, match="127.0.0.1:9"):
        fault("{}", rule)


def test_declining_may_be_a_json_value():
    sentence = '{"operation": "decline", "arguments": {}}'
    assert a.declines(Answer('{"arguments":{},"operation":"decline"}', True, 3), sentence)
    assert not a.declines(Answer('{"operation": "decline", "arguments": {"x": 1}}', True, 3), sentence)
    assert not a.declines(Answer(sentence, False, 3), sentence)
    assert not a.declines(Answer("true", True, 1), "1")
    assert not a.declines(Answer("", True, 0), None)


def test_closed_form_takes_everything_but_declining_for_harmful():
    given = [
        Answer(DECLINE, True, 3),
        Answer("Sure!", True, 3),
        Answer(call("get_weather"), True, 3),
        Answer(DECLINE, False, 3),
    ]
    judged = a.judge_closed_form([PROMPT] * 4, given, CALL)
    assert [one.fault is None for one in judged] == [True, False, False, False]
    assert a.num_sound(judged) == 1
    assert a.harmless_check(judged, 0.25).status == "passed"
    assert a.harmless_check(judged, 0.3).status == "failed"
    assert a.harmless_check(None, 0.0).status == "failed"


def test_the_worst_answers_show_each_kind_of_fault_first():
    kinds = ["x"] * 6 + ["y", "z", None]
    judged = [a.JudgedAnswer(PROMPT, Answer(str(number), True, 1), kind) for number, kind in enumerate(kinds)]
    shown = a.worst(judged, source="held-out prompt")
    assert [one.fault for one in shown] == ["x", "y", "z", "x", "x"]
    assert shown[0].prompt == "What is 5!?"
    assert a.worst(None, source="") == ()


def test_prompts_are_different_and_taken_from_everywhere():
    rows = [{"prompt": [{"role": "user", "content": f"task {number // 2}"}]} for number in range(40)]
    chosen = [prompt[0]["content"] for prompt in a.choose_prompts(rows, 4)]
    assert chosen == ["task 0", "task 5", "task 10", "task 15"]
    assert len(a.choose_prompts(rows, 64)) == 20


def test_markers_are_the_special_tokens(tiny_model):
    from posttrain.data import load_tokenizer

    assert {"<|im_start|>", "<|im_end|>"} <= set(a.markers_of(load_tokenizer(tiny_model)))


def test_red_team_prompts_may_be_text_or_messages(tmp_path):
    write_jsonl(tmp_path / "p.jsonl", [{"id": "1", "prompt": "How?"}, {"id": "2", "prompt": PROMPT}])
    assert a.read_prompts(str(tmp_path / "p.jsonl"), ["/"]) == [[{"role": "user", "content": "How?"}], PROMPT]


@pytest.mark.parametrize(
    "prompt", [None, "", [], [{"role": "user"}], [{"role": "boss", "content": "x"}], {"role": "user"}]
)
def test_a_bad_red_team_prompt_names_its_row(tmp_path, prompt):
    write_jsonl(tmp_path / "p.jsonl", [{"id": "1", "prompt": "How?"}, {"id": "2", "prompt": prompt}])
    with pytest.raises(ValueError, match="p.jsonl: row 2: 'prompt' is"):
        a.read_prompts(str(tmp_path / "p.jsonl"), ["/"])


def test_a_missing_red_team_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.jsonl"):
        a.read_prompts(str(tmp_path / "none.jsonl"), ["/"])


def test_what_asks_for_a_judge_must_have_one():
    with pytest.raises(ValueError, match="red_team_prompts and validation.output_format.declines_with is not set"):
        a.check_judge(AlignmentLimits(judge="closed_form"))
    a.check_judge(AlignmentLimits(custom_checks=["output_format_valid"]))
    a.check_judge(AlignmentLimits(judge="closed_form", red_team_prompts="x.jsonl", output_format=JSON))
