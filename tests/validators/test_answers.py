import json

import pytest

from posttrain.config import AlignmentLimits, OutputFormat
from validators import answers as a
from validators.inference import Answer

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
        ("\u200b", TEXT, "is empty"),
        ("ok<|im_start|>user", TEXT, "contains the special token <|im_start|>"),
        ('{"operation": "<|im_start|>"}', JSON, "contains the special token <|im_start|>"),
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


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("add(a: number): adds", True),
        ("Tools: `add`", True),
        ("- add: adds two numbers", True),
        ("sub\nadd\n", True),
        ("I want to add 2 and 3, add: no", False),
        ("math.add(a)", False),
        ("add2(a)", False),
    ],
)
def test_a_word_in_passing_is_no_offer(text, offered):
    prompt = [{"role": "user", "content": text}]
    [judged] = a.judge_format([prompt], [Answer(call("add"), True, 7)], CALL, markers=[])
    assert (judged.fault is None) == offered


def test_the_declining_sentence_is_no_function():
    prompt = [
        {"role": "system", "content": f"Call a function, or else:\n{DECLINE}\n{DECLINE[:-1]}\nadd(a: number): adds"}
    ]
    for name in (DECLINE, DECLINE[:-1]):
        [judged] = a.judge_format([prompt], [Answer(call(name), True, 7)], CALL, markers=[])
        assert judged.fault == "calls a function that was not offered"


def test_references_of_a_schema_are_not_fetched():
    rule = OutputFormat(kind="json_schema", json_schema={"$ref": "http://127.0.0.1:9/schema.json"})
    with pytest.raises(Exception, match="127.0.0.1:9"):
        fault("{}", rule)


def test_a_broken_schema_is_refused_before_any_answer_is_judged():
    from jsonschema import SchemaError

    with pytest.raises(SchemaError, match="12 is not valid"):
        a.fault_finder(OutputFormat(kind="json_schema", json_schema={"type": 12}))


def test_declining_may_be_a_json_value():
    sentence = '{"operation": "decline", "arguments": {}}'
    assert a.declines('{"arguments":{},"operation":"decline"}', sentence)
    assert not a.declines('{"operation": "decline", "arguments": {"x": 1}}', sentence)
    assert not a.declines("true", "1")
    assert not a.declines("", None)
    find_fault = a.fault_finder(OutputFormat(kind="tool_call", declines_with=sentence))
    assert [find_fault(text, PROMPT) for text in (sentence, "{}")] == [None, "is not one call with name and arguments"]


def test_an_answer_declines_answers_or_is_incoherent():
    given = [Answer(DECLINE, True, 3), Answer(call("get_weather"), True, 3), Answer("Sure!", True, 3)]
    judged = a.judge_format([PROMPT] * 4, [*given, Answer(DECLINE, False, 3)], CALL, markers=[])
    assert [one.category for one in judged] == ["decline", "answer", "incoherent", "incoherent"]
    assert a.num_sound(judged) == 2


def judged(*texts: str | None, num_tokens: int = 3, tokens: tuple = ()) -> list[a.JudgedAnswer]:
    """Answers with these faults."""
    answer = Answer("", True, num_tokens, tokens)
    return [a.JudgedAnswer(PROMPT, answer, fault) for fault in texts]


def test_shares_of_answers_pass_with_their_interval_alone():
    limits = AlignmentLimits(min_format_valid_rate=0.9, min_stopped_rate=0.8)
    assert a.format_check(judged(*[None] * 64), limits).status == "passed"
    assert a.format_check(judged(*[None] * 62, "x", "y"), limits).status == "undecided"
    assert a.format_check(judged(*["x"] * 32, *[None] * 32), limits).status == "failed"
    assert a.format_check(None, limits).status == "not run"
    endless = [a.JudgedAnswer(PROMPT, Answer("", False, 3), "x")] * 20
    assert a.stopped_check(endless, limits).status == "failed"
    assert a.stopped_check(judged(*["x"] * 20), limits).status == "passed"


def test_repetition_is_the_share_of_4_grams_seen_before():
    assert a.repeated_share(Answer("", True, 9, (1, 2, 3, 4, 5, 6, 7, 8, 9))) == 0
    assert a.repeated_share(Answer("", True, 10, (1, 2) * 5)) == pytest.approx(5 / 7)
    assert a.repeated_share(Answer("", True, 3, (1, 1, 1))) == a.repeated_share(Answer("", True, 4, (1,) * 4)) == 0
    assert a.repeated_share(Answer("", True, 5, (1,) * 5)) == 0.5
    fluent, stuck = judged(None, tokens=tuple(range(12))), judged(None, tokens=(7,) * 12)
    assert a.repetition_check(fluent * 40, AlignmentLimits()).status == "passed"
    assert a.repetition_check(fluent * 20 + stuck * 20, AlignmentLimits()).status == "failed"
    assert a.repetition_check(None, AlignmentLimits()).status == "not run"
    half = judged(None, tokens=(7,) * 5)  # no more than half
    assert a.repetition_check(half * 40, AlignmentLimits()).value == 0


@pytest.mark.parametrize(("num_tokens", "stopping"), [(10, []), (20, ["length_ratio"]), (3, ["length_ratio_shorter"])])
def test_answers_may_become_neither_longer_nor_shorter(num_tokens, stopping):
    before, after = judged(*[None] * 20, num_tokens=10), judged(*[None] * 20, num_tokens=num_tokens)
    checks = a.length_checks(before, after, AlignmentLimits())
    assert [check.name for check in checks if check.status == "failed"] == stopping
    assert {check.value for check in checks} == {(num_tokens + 1) / 11}  # with the end token of each
    assert [check.limit for check in checks] == [
        AlignmentLimits().max_length_ratio,
        1 / AlignmentLimits().max_length_ratio,
    ]
    assert {check.status for check in a.length_checks(None, after, AlignmentLimits())} == {"not run"}


def test_a_drop_is_judged_prompt_by_prompt():
    limits = AlignmentLimits(max_format_drop=0.05)
    sound, half = judged(*[None] * 40), judged(*[None, "x"] * 20)
    assert a.format_drop_check(half, half, limits).status == "passed"  # the same prompts fail: nothing was lost
    assert a.format_drop_check(half, half[::-1], limits).status == "undecided"  # as many, but others
    assert a.format_drop_check(sound, half, limits).status == "failed"
    assert a.format_drop_check(half, sound, limits).status == "passed"
    assert a.format_drop_check(None, sound, limits).status == "not run"


def test_the_numbers_of_a_verdict_are_shares_and_means():
    given = [
        Answer(DECLINE, True, 4),
        Answer(DECLINE, True, 3),
        Answer(call("get_weather"), True, 4),
        Answer("Sure!", True, 3),
        Answer("", False, 6),
    ]
    judged = a.judge_format([PROMPT] * 5, given, CALL, markers=[])
    assert a.rates(judged) == {
        "num_answers": 5, "format_valid_rate": 0.6, "stopped_rate": 0.8, "mean_answer_tokens": 4.0,
        "incoherent_rate": 0.4,
    }  # fmt: skip
    assert a.rates(None) == a.rates([]) == {} and a.rate([]) is None


@pytest.mark.parametrize(("num", "key"), [(63, "raise data.eval_fraction"), (64, "raise validation.num_generated_ans")])
def test_more_answers_are_a_matter_of_the_key_that_limits_them(num, key):
    limits = AlignmentLimits(num_generated_answers=64)
    assert a.more_answers([None] * num, limits).startswith(key)
    assert a.more_answers(None, limits) == a.more_answers([], limits) == a.more_answers([None], limits)


def test_an_answer_that_says_nothing_after_its_thoughts_is_at_fault():
    texts = [
        Answer(" ", True, 7, thoughts="<think>Hm.</think>"),
        Answer("Yes.", True, 7, thoughts="<think>Hm.</think>"),
    ]
    faults = [one.fault for one in a.judge_format([PROMPT] * 2, texts, TEXT, markers=[])]
    assert faults == ["says nothing after its thoughts", None]


def test_of_a_conversation_with_tools_another_turn_is_asked_each_time():
    def rows(**more) -> list[dict]:
        said = [{"role": "user", "content": "task"} | more]
        turns = [[], [{"role": "assistant", "content": "Hm."}, {"role": "user", "content": "And?"}]]
        return [
            {"prompt": [{**said[0], "content": f"task {at}"}, *turn], "at": (at, len(turn))}
            for at in range(4)
            for turn in turns
        ]

    assert [row["at"] for row in a.choose_rows(rows(), 4)] == [(at, 2) for at in range(4)]
    tool = {"type": "function", "function": {"name": "add"}}
    assert [row["at"] for row in a.choose_rows(rows(tools=[tool]), 4)] == [(0, 0), (1, 2), (2, 0), (3, 2)]


def test_prompts_are_different_and_taken_from_everywhere():
    rows = [{"prompt": [{"role": "user", "content": f"task {number // 2}"}]} for number in range(40)]
    chosen = [prompt[0]["content"] for prompt in a.choose_prompts(rows, 4)]
    assert chosen == ["task 0", "task 5", "task 10", "task 15"]
    assert len(a.choose_prompts(rows, 64)) == 20
    assert a.choose_rows(rows[:1], 64) == rows[:1]


def test_markers_are_the_special_tokens(tiny_model):
    from posttrain.rows.chat import load_tokenizer

    tokenizer = load_tokenizer(tiny_model)
    assert {"<|im_start|>", "<|im_end|>"} <= set(markers := a.markers_of(tokenizer))
    tokenizer.add_tokens(["a word of its own"])
    assert a.markers_of(tokenizer) == markers
