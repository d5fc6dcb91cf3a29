import pytest

from posttrain.rows import formats
from posttrain.rows.formats import (
    as_seen,
    check_row,
    content_key,
    convert,
    normalise,
    prompt_key,
    read_jsonl,
    references_of,
    write_jsonl,
)
from posttrain.rows.skeleton import skeleton

USER = {"role": "user", "content": "Add a task."}
ANSWER = {"role": "assistant", "content": "Done."}
WORSE = {"role": "assistant", "content": "No."}
SYSTEM = {"role": "system", "content": "You are the Task API."}


def one(raw, kind="sft"):
    rows, _ = convert([raw], kind=kind, source="rows.jsonl")
    assert len(rows) == 1
    return rows[0]


def refused(raw, kind="sft"):
    with pytest.raises(ValueError) as caught:
        convert(raw if isinstance(raw, list) else [raw], kind=kind, source="rows.jsonl")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("rows.jsonl: ")
    return message


@pytest.mark.parametrize(
    "raw",
    [
        {"messages": [USER, ANSWER]},
        {"prompt": "Add a task.", "completion": "Done."},
        {"prompt": [USER], "completion": [ANSWER], "score": None},
        {"prompt": [USER], "completion": "Done."},
    ],
)
def test_every_sft_format_gives_the_same_row(raw):
    assert one(raw) == {"id": "row-1", "prompt": [USER], "completion": [ANSWER]}


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": "Add a task.", "chosen": "Done.", "rejected": "No."},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]},
        {"chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
        {"prompt": "Add a task.", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
    ],
)
def test_every_preference_format_gives_the_same_row(raw):
    assert one(raw, "preference") == {"id": "row-1", "prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]}


def test_implicit_prompt_keeps_earlier_turns_and_equal_answers():
    raw = {"chosen": [SYSTEM, USER, WORSE, USER, ANSWER], "rejected": [SYSTEM, USER, WORSE, USER, ANSWER]}
    row = one(raw, "preference")
    assert row["prompt"] == [SYSTEM, USER, WORSE, USER]
    assert row["chosen"] == row["rejected"] == [ANSWER]


def test_a_conversation_gives_a_row_for_each_answer_to_somebody():
    greeting = {"role": "assistant", "content": "Hello."}
    rows, format_name = convert(
        [{"id": 7, "messages": [greeting, USER, ANSWER, USER, WORSE, USER]}], kind="sft", source="x"
    )
    assert format_name == "messages"
    assert [row["id"] for row in rows] == ["7-turn-1", "7-turn-2"]
    assert rows[1]["prompt"] == [greeting, USER, ANSWER, USER]
    assert len({prompt_key(row) for row in rows}) == 1


def test_ids_are_kept_and_made_unique():
    raw = [{"id": "a", "prompt": "x", "completion": "y"}] * 2 + [{"prompt": "x", "completion": "y"}]
    rows, _ = convert(raw, kind="sft", source="x")
    assert [row["id"] for row in rows] == ["a", "a-row-2", "row-3"]


def test_refusals_name_row_key_value_and_remedy():
    good = {"prompt": "x", "completion": "y"}
    assert "row 2: is messages, but the rows before it are prompt, completion (plain text)" in refused(
        [good, {"messages": [USER, ANSWER]}]
    )
    assert "row 2: is prompt, completion (conv" in refused([good, {"prompt": [USER], "completion": [ANSWER]}])
    assert "row 1: 'completion' missing, the keys are ['prompt', 'completion']: give" in refused(
        {"prompt": "x", "completion": None}
    )
    assert "content 3: give a string" in refused({"messages": [{"role": "user", "content": 3}, ANSWER]})
    assert "role 'human': use one of system, user" in refused({"messages": [{"role": "human", "content": "x"}]})
    assert "'completion' has an empty turn" in refused({"prompt": "x", "completion": "  "})
    assert "'prompt' has an empty turn" in refused({"prompt": "", "completion": "y"})
    assert "'prompt' is 5: give a string or a list of messages" in refused({"prompt": 5, "completion": "y"})
    assert "'messages' is 'text': give a list of messages" in refused({"messages": "text"})
    assert "give an assistant turn after a user turn" in refused({"messages": [USER]})
    assert "content None: give a string" in refused({"messages": [USER, {"role": "assistant", "content": None}]})
    assert "UTF-16" in refused({"prompt": "\ud83d", "completion": "y"})
    assert "row 1: is [1]: give an object" in refused([[1]])
    assert "holds no rows" in refused([])


def test_refusals_of_preferences():
    assert "'chosen' missing" in refused({"prompt": "x", "rejected": "y"}, "preference")
    assert "'chosen' and 'rejected' missing" in refused({"prompt": "x", "completion": "y"}, "preference")
    assert "'prompt' missing, 'chosen' is 'y'" in refused({"chosen": "y", "rejected": "z"}, "preference")
    assert "give one assistant message" in refused(
        {"prompt": "x", "chosen": [ANSWER, USER, ANSWER], "rejected": "y"}, "preference"
    )
    other = {"prompt": "Something else", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]}
    assert "'Something else' is not how 'chosen' and 'rejected' begin" in refused(other, "preference")
    assert "give at least one user turn" in refused(
        {"chosen": [USER, ANSWER], "rejected": [SYSTEM, WORSE]}, "preference"
    )


def test_long_values_are_shortened():
    assert len(refused({"prompt": ["x" * 10_000], "completion": "y"})) < 300


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Add  a\tTask.", "add a task"),
        ("“ＡＤＤ” a task!?", "add a task"),
        ("STRASSE", "straße"),
        ("¿Qué?", "qué"),
        ("don't", "DON'T"),
        ("Cafe\u0301", "café"),
        ("\ufeffad\u200bd\u00a0a ta\u00adsk\u2060", "add a task"),
        ("❤\ufe0f", "❤"),
    ],
)
def test_normalise_takes_case_width_space_and_punctuation_away(text, same):
    assert normalise(text) == normalise(same)


@pytest.mark.parametrize(("text", "other"), [("task 1", "task 2"), ("?!", "!?"), ("3+4", "3*4"), ("कि", "की")])
def test_normalise_keeps_what_is_different_apart(text, other):
    assert normalise(text) != normalise(other)


@pytest.mark.parametrize(
    ("text", "same"), [(" a  b \r\nc\n", "a b\nc"), ("ca\u200bfe\u0301\u00a0?", "café ?"), ("  x = 1", "x = 1")]
)
def test_what_the_eye_does_not_see_does_not_count(text, same):
    assert as_seen(text) == as_seen(same)


@pytest.mark.parametrize(("text", "other"), [("Yes", "yes"), ("No.", "No"), ("if a:\n  b", "if a:\nb"), ("ab", "a b")])
def test_what_it_sees_counts(text, other):
    assert as_seen(text) != as_seen(other)


def test_prompt_key_ignores_the_system_turn_and_what_follows_the_first_answer():
    rows = [
        {"prompt": [USER]},
        {"prompt": [SYSTEM, USER]},
        {"prompt": [USER, ANSWER, {"role": "user", "content": "More."}]},
    ]
    assert len({prompt_key(row) for row in rows}) == 1


def test_jsonl_round_trip_keeps_every_character(tmp_path):
    rows = [{"prompt": "a\u2028b\r\nc", "completion": "日本語 🙂"}, {"prompt": "x", "completion": "y"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows


def test_check_row_wants_our_form():
    check_row({"id": "a", "prompt": [USER], "completion": [ANSWER]}, "sft")
    with pytest.raises(ValueError, match="'id' is None"):
        check_row({"prompt": [USER], "completion": [ANSWER]}, "sft")
    with pytest.raises(ValueError, match="'completion' is 'Done.'"):
        check_row({"id": "a", "prompt": [USER], "completion": "Done."}, "sft")
    with pytest.raises(ValueError, match="'prompt' ends with the role 'assistant'"):
        check_row({"id": "a", "prompt": [USER, ANSWER], "completion": [ANSWER]}, "sft")


CALL = {"name": "add", "accepted_arguments": {"title": ["rent", "the rent"]}}
PLAIN = {"prompt": "Add a task.", "completion": "Done."}


@pytest.mark.parametrize("references", [["Done.", "It is done."], [CALL], [[CALL, CALL], "Done."], [3.5], [False, 0]])
def test_accepted_answers_are_kept_as_they_are(references):
    assert references_of(one(PLAIN | {"references": references})) == references
    pair = {"prompt": "Add a task.", "chosen": "Done.", "rejected": "No.", "references": references}
    assert references_of(one(pair, "preference")) == references


def test_without_accepted_answers_the_row_s_own_counts():
    assert references_of(one(PLAIN)) == references_of(one(PLAIN | {"references": None})) == ["Done."]
    assert references_of(one({"prompt": "Add.", "chosen": "Done.", "rejected": "No."}, "preference")) == ["Done."]


def test_accepted_answers_of_a_conversation_are_those_to_its_end():
    rows, _ = convert(
        [{"messages": [USER, WORSE, USER, ANSWER], "references": ["Yes."]}], kind="sft", source="rows.jsonl"
    )
    assert [references_of(row) for row in rows] == [["No."], ["Yes."]]


@pytest.mark.parametrize("references", [[], "Done.", {"a": 1}, ["Done.", None], [float("nan")], ["\ud800"], [object()]])
def test_accepted_answers_that_are_none_are_refused(references):
    message = refused(PLAIN | {"references": references})
    assert message.startswith("rows.jsonl: row 1: 'references' is ") and ": give " in message


def test_rows_that_differ_in_accepted_answers_alone_are_duplicates():
    rows = [one(PLAIN), one(PLAIN | {"references": ["Yes."]})]
    assert len(set(map(content_key, rows))) == 1


def test_rows_that_are_nested_too_deep_are_an_error_on_one_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a":' * 100_000)
    with pytest.raises(
        ValueError, match=r"rows\.jsonl: line 1: JSON with more than 200 levels of lists and objects: flatten it"
    ):
        formats.read_jsonl(tmp_path / "rows.jsonl")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["a" + "\u0300\u0316" * 400_000, "\ufdfa" * 50_000, "e\u0301 " * 100_000])
def test_crafted_text_takes_no_more_time_than_other_text(text):
    assert formats.normalise(text) and skeleton(text)


def test_marks_that_people_write_stay():
    assert formats.normalise("Cafe\u0301") == "caf\u00e9"
    assert formats.normalise("a" + "\u0316" * 30) == "a" + "\u0316" * 30
