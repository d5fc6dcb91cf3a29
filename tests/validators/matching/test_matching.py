"""The matchers that need neither a model nor code of the user's: what is right, what is wrong, what is refused."""

import json
import re
from decimal import Decimal

import pytest

from posttrain.config import Matching, MatchOptions, OutputFormat
from validators.inference import Answer
from validators.matching import best_scores, scorer
from validators.matching.number import last_number
from validators.matching.structured import sample_text


def score(matcher: str, reference, answer: str, **options) -> float:
    return scorer(matcher, reference, MatchOptions(**options))(answer)


def check(matcher: str, reference, right: list[str], wrong: list[str], **options) -> None:
    assert [answer for answer in right if score(matcher, reference, answer, **options) != 1.0] == []
    assert [answer for answer in wrong if score(matcher, reference, answer, **options) != 0.0] == []


NOTHING = ["", " ", "\n", "\u200b", "null", "{}", "[]", "[[", "A B C D", "0 1 2 3"]


def test_exact():
    right = ["Café au lait", " Café  au\nlait ", "Cafe\u0301 au lait", "Ｃａｆｅ\u0301\u00a0au\u200b lait"]
    check("exact", "Café au lait", right, ["café au lait", "Café au lait.", "Café", "Cafe au lait", *NOTHING])


@pytest.mark.parametrize("reference", ["", " \u200b", "\u2060"])
@pytest.mark.parametrize("name", ["exact", "contains"])
def test_a_blank_reference_would_make_right_of_a_model_that_says_nothing(name, reference):
    with pytest.raises(ValueError, match="is blank"):
        scorer(name, reference, MatchOptions())


def test_contains():
    right = ["Paris", "It is paris.", "(Paris)", "Paris's light", "“PARIS”, of course", "Not Rome but Paris"]
    check("contains", "Paris", right, ["Parisian", "comparison", "par is", "Par-is", *NOTHING])
    check("contains", "New York", ["in new  york!", "New\nYork-based"], ["New", "York New", "New Yorker"])
    check("contains", "東京", ["東京", "首都は東京です。"], ["京都"])
    check("contains", "서울", ["서울은 수도다"], ["수도"])
    check("contains", "C++", ["in C++, say"], ["C", "D"])
    check("contains", "is", ["It is."], ["a xis", "isx a"])
    check("contains", "caf", ["caf", "caf 東京", "caf東京"], ["café", "cafés", "écaf"])


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        ("B", ["B", "b", " B. ", "(B)", "**B**", "It is B.", "B) Paris. A is in Italy.", "B: since A and C are not",
               "A is wrong and C too, so the answer is B", "Answer: (B)", "A cat sat on B", "I think it is B"],
         ["A", "C", "AB", "A or B", "B or A", "A B C D", "A, B", "The answer is A, not B", "Answer: B. No, answer: A"]),
        ("A", ["A", "A)", "The answer is A", "It must be A."], ["A cat", "B", "It is a dog", "A apple or B"]),
    ],
)  # fmt: skip
def test_choice_of_letters(reference, right, wrong):
    check("choice", reference, right, [*wrong, *NOTHING])


def test_choice_of_words():
    choices = ["spam", "not spam", "unsure"]
    check(
        "choice",
        "spam",
        ["spam", "Spam!", "This is spam."],
        ["not spam", "This is not spam.", "spammer"],
        choices=choices,
    )
    check("choice", "not spam", ["NOT spam", "It is not spam."], ["spam", "unsure, maybe not spam"], choices=choices)
    check("choice", "The answer is spam.", ["spam"], ["ham"], choices=choices)
    check("choice", "no", ["It is NO."], ["It is yes."], choices=["yes", "no"])  # a word of two letters is one, too


TEN_THOUSAND = [
    "10000", "10,000", "$10,000", "10 000", "10\u00a0000", "10\u202f000", "10'000", "10.000,00", "10,000.0", "1e4",
    "1E+4", "1 x 10^4", "1 × 10⁴", r"1 \times 10^{4}", "10^4", "20000/2", "10k", "10 thousand", "0.01 million",
    "1000000 %", "+10000", "It costs $10,000.", "First 7, then 10,000!", r"\boxed{10{,}000}", "#### 10000",
    "€10.000,00", "**10000**", "10000 kg", "'10000'", "so...10000", "１００００",
]  # fmt: skip
NOT_TEN_THOUSAND = [
    "100000", "1000", "-10000", "10", "10 0000", "1e5", "10000.5", "10000 or 20000", "10001", "10000 %", "10000/0",
    "ten thousand", "x10000", "10000 m^2 of 5", "10.000", "10:00", "1/10000", "10000 million", "NaN", "Infinity",
]  # fmt: skip


def test_number():
    for reference in (10000, 10000.0, "10,000", "#### 10000", "The answer is 1e4."):
        check("number", reference, TEN_THOUSAND, [*NOT_TEN_THOUSAND, *NOTHING])
    check("number", "-3.5 %", ["-3.5 %", "−3.5%", "-0.035", r"-3.5\%", "-3.5 percent"], ["-3.5", "3.5 %", "0.035"])
    check("number", "3", ["3-4 is wrong, 1-3", "10 m² and 3", "12, 3"], ["3-4", "x3", "H3O", "1.2.3", "10:03", "3.0.0"])
    check("number", 10_000_000, ["10.000.000", "0.01 billion", "0.00001 trillion"], ["10.000"])
    check("number", 12.3456, ["12,3456"], ["123456"])
    check("number", 0.1, [".1", "0.10", "0,1", "1/10"], ["0.1000000000000000001", "1"])


@pytest.mark.parametrize(
    ("reference", "options", "right", "wrong"),
    [
        (100, {"absolute_tolerance": 0.5}, ["99.5", "100.5"], ["99.4", "100.6", "-100"]),
        (100, {"relative_tolerance": 0.01}, ["99", "101"], ["98.9", "101.1"]),
        (0, {"relative_tolerance": 0.5}, ["0"], ["0.0001"]),
        (-100, {"relative_tolerance": 0.01, "absolute_tolerance": 2}, ["-98", "-102"], ["-97", "102"]),
        ("1e9000", {"relative_tolerance": 0.1}, ["1.05e9000"], ["1e8999", "5"]),
    ],
)
def test_number_within_the_tolerance(reference, options, right, wrong):
    check("number", reference, right, wrong, **options)


def test_a_number_is_exact_however_many_digits_it_has():
    digits = "9" * 400
    check("number", digits, [digits, f"{digits}.0"], [digits[:-1] + "8", "1" + "0" * 400])
    assert last_number("1e9999") == Decimal("1e9999")


TASK = {"task": "rent", "due": None, "priority": 2, "done": True, "tags": ["a", {"b": 0.1}]}


def test_json():
    text = json.dumps(TASK)
    right = [text, json.dumps(TASK, indent=3, sort_keys=True), text.replace("2", "2.0").replace("0.1", "1e-1")]
    changes = [
        {"due": False}, {"due": ""}, {"priority": 3}, {"priority": "2"}, {"priority": True}, {"done": 1},
        {"more": None}, {"tags": [{"b": 0.1}, "a"]}, {"tags": ["a"]}, {"tags": ["a", {"b": 0.1}, "a"]},
        {"tags": {"0": "a"}},
    ]  # fmt: skip
    wrong = [json.dumps(TASK | change) for change in changes]
    wrong += [
        f"Here: {text}",
        text[:-1],
        f"[{text}]",
        f"```json\n{text}\n```",
        "NaN",
        text.replace("2", "NaN"),
        *NOTHING,
    ]
    wrong += [text.replace('"priority": 2', '"priority": 3, "priority": 2'), "[" * 100_000]
    for reference in (TASK, text):
        check("json", reference, right, wrong)


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [(1, ["1", "1.0"], ["true", '"1"', "[1]"]), (True, ["true"], ["1", "1.0"]), (None, ["null"], ["", "0", "false"]),
     (0, ["0", "-0.0"], ["false", "null"]), ([], ["[]"], ["{}", "null"]), ('"a"', ['"a"'], ["a"])],
)  # fmt: skip
def test_json_tells_kinds_apart(reference, right, wrong):
    check("json", reference, right, wrong)


def test_json_ignores_keys_by_name_at_any_depth():
    reference = {"id": 7, "tasks": [{"id": 8, "title": "rent"}]}
    right = ['{"tasks": [{"title": "rent"}]}', '{"id": "x", "tasks": [{"title": "rent", "id": null}]}']
    wrong = ['{"id": 7, "tasks": [{"id": 8}]}', '{"id": 7}', '{"tasks": [{"title": "rent", "ids": 1}]}']
    check("json", reference, right, wrong, ignored_keys=["id"])
    check("json", reference, [json.dumps(reference)], right[:1])


CALL = {"name": "book", "arguments": {"seats": 2, "row": "A"}}


def call(**arguments) -> str:
    return json.dumps({"name": "book", "arguments": arguments})


def test_tool_call():
    right = [json.dumps(CALL), call(row="A", seats=2.0), json.dumps([CALL])]
    wrong = [
        call(seats=2), call(seats=2, row="A", more=1), call(seats=3, row="A"), call(seats=True, row="A"),
        call(seats="2", row="A"), call(seats=2, row="a"), json.dumps(CALL).replace("book", "Book"),
        json.dumps([CALL, CALL]), json.dumps(CALL | {"id": 1}), "No function fits.", json.dumps(CALL["arguments"]),
        json.dumps({"name": "book", "arguments": "seats=2"}), *NOTHING,
    ]  # fmt: skip
    for reference in (CALL, json.dumps(CALL), [CALL]):
        check("tool_call", reference, right, wrong)


def test_tool_call_with_accepted_arguments():
    reference = {
        "name": "book",
        "accepted_arguments": {"seats": [2, 3], "row": ["A", ""], "days": [[1, 2], [2, 1]]},
        "optional_arguments": ["row"],
    }
    right = [call(seats=3, row="A", days=[1, 2]), call(seats=2, days=[2, 1]), call(seats=2, row="", days=[1, 2])]
    wrong = [
        call(seats=4, row="A", days=[1, 2]), call(row="A", days=[1, 2]), call(seats=2, days=[1]), call(seats=2, days=1),
        call(seats=2, row="B", days=[1, 2]), call(seats=2, days=[1, 2], name="x"), call(seats=[2, 3], days=[1, 2]),
    ]  # fmt: skip
    for form in (reference, json.dumps(reference), [reference]):
        check("tool_call", form, right, [*wrong, *NOTHING])
    assert score("tool_call", reference, sample_text(reference)) == 1.0


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("No function fits.", "No function fits."),
        ({"place": "Zürich"}, '{"place": "Zürich"}'),
        ('{"place":"Zürich"}', '{"place":"Zürich"}'),
        ([{"place": 1}], '[{"place": 1}]'),
        ([], "[]"),
        ({"name": "go", "accepted_arguments": {"place": ["Zürich", "Bern"]}},
         '{"name": "go", "arguments": {"place": "Zürich"}}'),
        ({"name": "go", "accepted_arguments": {"place": ["Bern"], "day": [1]}, "optional_arguments": ["day"]},
         '{"name": "go", "arguments": {"place": "Bern"}}'),
        ([CALL], json.dumps([CALL])),
    ],
)  # fmt: skip
def test_a_text_that_is_right(reference, text):
    assert sample_text(reference) == text


def test_parallel_calls_come_in_any_order_and_each_needs_its_own():
    either = {"name": "book", "accepted_arguments": {"row": ["A", "B"]}}
    first = {"name": "book", "arguments": {"row": "A"}}
    a, b = call(row="A"), call(row="B")
    check("tool_call", [either, first], [f"[{a}, {b}]", f"[{b}, {a}]", f"[{a}, {a}]"], [f"[{b}, {b}]", a, f"[{a}]"])
    check("tool_call", [first, either], [f"[{a}, {b}]", f"[{b}, {a}]"], [f"[{a}, {b}, {a}]", f"[{b}]"])


def test_the_sentence_that_calls_nothing():
    check(
        "tool_call",
        "No function fits.",
        ["No function fits.", " No function  fits."],
        [json.dumps(CALL), "No", *NOTHING],
    )


def test_loose_texts_are_compared_as_berkeley_s_checker_does():
    reference = {"name": "find", "arguments": {"where": "San Francisco, CA", "what": "a-b"}}
    loose = json.dumps({"name": "find", "arguments": {"where": "san francisco CA", "what": "AB"}})
    check("tool_call", reference, [loose], [loose.replace("CA", "NY"), loose.replace("find", "Find")], text="loose")
    check("tool_call", reference, [], [loose])


def test_ignored_arguments_may_be_anything_or_nothing():
    right = [call(seats=2), call(seats=2, row="Z"), call(seats=2, row=None)]
    check("tool_call", CALL, right, [call(row="A"), call(seats=3, row="A")], ignored_keys=["row"])


@pytest.mark.parametrize(
    ("matcher", "reference", "words"),
    [
        ("exact", {"a": 1}, "is not a text: give a text, or answer_match json"),
        ("contains", " ", "is blank, so every answer contains it"),
        ("contains", "\u200b", "is blank"),
        ("choice", "E", "does not name one of A, B, C, D: set match_options.choices"),
        ("choice", "A or B", "does not name one of"),
        ("number", "none", "holds no number"),
        ("number", True, "holds no number"),
        ("number", [1], "holds no number"),
        ("json", "{'a': 1}", "is not JSON: give JSON"),
        ("tool_call", {"name": "book"}, "neither a call nor a sentence"),
        ("tool_call", '{"name": "book", "args": {}}', "neither a call nor a sentence"),
        ("tool_call", [], "neither a call nor a sentence"),
        ("tool_call", {"name": 3, "arguments": {}}, "neither a call nor a sentence"),
        ("tool_call", {"name": "b", "accepted_arguments": {"day": [1], "seats": []}}, "neither a call nor a sentence"),
        ("tool_call", {"name": "book", "accepted_arguments": {"seats": 2}}, "neither a call nor a sentence"),
        ("tool_call", {"name": "book", "accepted_arguments": {"seats": []}}, "neither a call nor a sentence"),
        ("tool_call", {"name": "b", "accepted_arguments": {}, "optional_arguments": ["x"]}, "neither a call nor"),
        ("tool_call", {"name": "b", "accepted_arguments": {}, "arguments": {}}, "neither a call nor a sentence"),
    ],
)
def test_a_reference_of_no_use_is_refused(matcher, reference, words):
    with pytest.raises(ValueError, match=words):
        scorer(matcher, reference, MatchOptions())


@pytest.mark.parametrize(("matcher", "shown"), [("exact", f"'[{'7, ' * 26}7'"), ("number", f"'[{'7, ' * 26}7'")])
def test_no_more_than_eighty_characters_of_a_reference_are_shown(matcher, shown):
    with pytest.raises(ValueError, match=f"^reference {re.escape(shown)} "):
        scorer(matcher, [7] * 99, MatchOptions())
    with pytest.raises(ValueError, match=f"^reference '{'x' * 79} is not JSON"):
        scorer("json", "x" * 99, MatchOptions())


def test_a_reference_of_ignored_keys_alone_is_refused():
    with pytest.raises(ValueError, match="has only ignored keys"):
        scorer("json", {"id": 1}, MatchOptions(ignored_keys=["id"]))


EXACT = Matching(answer_match="exact")


def answered(*texts: str, stopped: bool = True) -> list[Answer]:
    return [Answer(text, stopped, len(text)) for text in texts]


def test_the_best_of_several_references_counts():
    references = [["Paris", "Lutetia"], ["Rome"], ["4", "four"]]
    assert best_scores(EXACT, answered("Lutetia", "Paris", "five"), references) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("matcher", "reference"), [("exact", "4"), ("contains", "4"), ("choice", "B"), ("number", 4), ("json", 4)]
)
def test_an_answer_that_did_not_end_by_itself_scores_nothing(matcher, reference):
    rule, text = Matching(answer_match=matcher), str(reference)
    assert best_scores(rule, answered(text), [[reference]]) == [1.0]
    assert best_scores(rule, answered(text, stopped=False), [[reference]]) == [0.0]


def test_a_reference_of_no_use_is_refused_with_its_row():
    with pytest.raises(ValueError, match="answer_match number: held-out row 2: reference 'x' holds no number"):
        best_scores(Matching(answer_match="number"), answered("1", "1"), [[1], [1, "x"]])
    with pytest.raises(ValueError, match="answer_match exact: held-out row 1 has no reference"):
        best_scores(EXACT, answered("1"), [[]])


@pytest.mark.parametrize("matcher", ["exact", "contains", "choice", "number", "json", "tool_call"])
def test_the_sentence_that_declines_is_wanted_as_it_is_whatever_the_matcher(matcher):
    sentence = "I can only manage tasks."
    rule = Matching(answer_match=matcher, output_format=OutputFormat(declines_with=sentence))
    answers = answered(sentence, f" {sentence}\n", f"{sentence} Sorry.", "{}", "A", "1", "")
    assert best_scores(rule, answers, [[sentence]] * 7) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_declining_what_was_to_be_answered_is_wrong():
    rule = Matching(answer_match="json", output_format=OutputFormat(declines_with="No."))
    assert best_scores(rule, answered("No.", "3"), [[3], [3, "No."]]) == [0.0, 1.0]
    assert best_scores(rule, answered("No."), [[3, "No."]]) == [1.0]
