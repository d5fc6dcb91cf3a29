import logging

import pytest

from posttrain.rows import keys
from posttrain.rows.formats import content_key, convert

USER = {"role": "user", "content": "Add a task."}
ANSWER = {"role": "assistant", "content": "Done."}
WORSE = {"role": "assistant", "content": "No."}
SYSTEM = {"role": "system", "content": "Answer in French only."}
PLAIN = {"prompt": "Add a task.", "completion": "Done."}
PAIR = {"prompt": "Add a task.", "chosen": "Done.", "rejected": "No."}


def rows_of(raw, kind="sft", **options):
    return convert([raw], kind=kind, source="rows.jsonl", **options)[0]


def refused(raw, kind="sft"):
    with pytest.raises(ValueError) as caught:
        rows_of(raw, kind)
    message = str(caught.value)
    assert message.startswith("rows.jsonl: row 1: ") and "\n" not in message
    return message


@pytest.mark.parametrize("column", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (PLAIN, "sft"),
        ({"messages": [USER, ANSWER]}, "sft"),
        (PAIR, "preference"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, WORSE]}, "preference"),
    ],
)
def test_a_system_column_becomes_the_system_turn(raw, kind, column):
    [row] = rows_of(raw | {column: SYSTEM["content"]}, kind)
    assert row["prompt"] == [SYSTEM, USER]
    assert "left_out" not in row


def test_every_row_of_a_conversation_gets_the_system_turn_of_the_column():
    rows = rows_of({"messages": [USER, WORSE, USER, ANSWER], "system": SYSTEM["content"]})
    assert [row["prompt"][0] for row in rows] == [SYSTEM, SYSTEM]


@pytest.mark.parametrize("nothing", [None, "", " ", [], float("nan")])
def test_a_system_column_without_text_is_none(nothing):
    assert rows_of(PLAIN | {"system": nothing})[0]["prompt"] == [USER]


def test_two_system_turns_are_refused():
    assert "has a system turn, and a column with" in refused({"messages": [SYSTEM, USER, ANSWER], "system": "Be kind."})
    assert "'system' and 'system_prompt': give one" in refused(PLAIN | {"system": "a", "system_prompt": "b"})
    assert "'system' is ['a']: give a text" in refused(PLAIN | {"system": ["a"]})


@pytest.mark.parametrize(
    "marks",
    [
        ({"weight": 0}, {"weight": 1}),
        ({"weight": 0.0}, {}),
        ({"train": False}, {"train": True}),
        ({"masked": True}, {"masked": False}),
        ({"loss_mask": 0}, {"loss_mask": 1}),
        ({"loss": False, "weight": None}, {"loss": True}),
    ],
)
def test_a_turn_that_is_not_to_be_learned_is_context(marks):
    draft, answer = marks
    raw = {"messages": [USER, WORSE | draft, USER, ANSWER | answer]}
    assert rows_of(raw) == [{"id": "row-1", "prompt": [USER, WORSE, USER], "completion": [ANSWER]}]


def test_the_weights_of_an_openai_fine_tuning_file():
    raw = {
        "messages": [
            SYSTEM,
            USER | {"name": None},
            WORSE | {"weight": 0, "refusal": None, "audio": None},
            USER,
            ANSWER,
        ],
        "parallel_tool_calls": True,
    }
    [row] = rows_of(raw)
    assert (row["prompt"], row["completion"]) == ([SYSTEM, USER, WORSE, USER], [ANSWER])
    assert row["left_out"] == ["parallel_tool_calls"]


def test_marks_that_cannot_be_honoured_are_refused():
    assert "'weight' 0.5: give 1 to learn" in refused({"messages": [USER, ANSWER | {"weight": 0.5}]})
    assert "contradict each other" in refused({"messages": [USER, ANSWER | {"weight": 0, "train": True}]})
    assert "no answer that is to be learned: remove the row" in refused({"messages": [USER, ANSWER | {"weight": 0}]})
    assert "in a turn that is not an answer" in refused({"messages": [USER | {"train": True}, ANSWER]})
    pair = {"prompt": [USER], "chosen": [ANSWER | {"weight": 0}], "rejected": [WORSE]}
    assert "ends with an answer that is not to be learned" in refused(pair, "preference")
    assert "split the turn" in refused({"messages": [USER, ANSWER | {"train_detail": [{"begin_offset": 0}]}]})


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_thoughts_stay_with_their_message(name):
    thought = ANSWER | {name: "First I count."}
    assert rows_of({"messages": [USER, thought]})[0]["completion"] == [thought]
    [pair] = rows_of({"prompt": [USER], "chosen": [thought], "rejected": [WORSE]}, "preference")
    assert pair["chosen"] == [thought]
    assert content_key(pair) != content_key(pair | {"chosen": [ANSWER]})
    assert "give the one that the template reads" in refused(
        {"messages": [USER, thought | dict.fromkeys(keys.THOUGHTS, "x")]}
    )


def test_a_system_turn_of_the_explicit_prompt_alone_is_kept():
    whole = {"chosen": [USER, ANSWER], "rejected": [USER, WORSE]}
    [row] = rows_of({"prompt": [SYSTEM, USER]} | whole, "preference")
    assert (row["prompt"], row["chosen"]) == ([SYSTEM, USER], [ANSWER])
    with_system = {"chosen": [SYSTEM, USER, ANSWER], "rejected": [SYSTEM, USER, WORSE]}
    assert rows_of({"prompt": "Add a task."} | with_system, "preference")[0]["prompt"] == [SYSTEM, USER]
    assert rows_of({"prompt": [SYSTEM, USER]} | with_system, "preference")[0]["prompt"] == [SYSTEM, USER]
    other = {"role": "system", "content": "Be kind."}
    assert "'Be kind.' is not how 'chosen' and 'rejected' begin" in refused(
        {"prompt": [other, USER]} | with_system, "preference"
    )


def test_an_explicit_prompt_with_other_earlier_turns_is_refused():
    begun = [USER, WORSE, USER]
    whole = {"chosen": [*begun, ANSWER], "rejected": [*begun, WORSE]}
    assert rows_of({"prompt": begun} | whole, "preference")[0]["prompt"] == begun
    assert "'Done.' is not how" in refused({"prompt": [USER, ANSWER, USER]} | whole, "preference")
    assert "is not how" in refused({"prompt": [*begun, WORSE, USER]} | whole, "preference")


def test_input_is_joined_to_the_prompt_as_alpaca_s():
    raw = {"prompt": "Translate to French.", "input": "dog", "completion": "chien"}
    assert rows_of(raw)[0]["prompt"] == [{"role": "user", "content": "Translate to French.\ndog"}]
    assert rows_of(raw | {"input": ""})[0]["prompt"] == [{"role": "user", "content": "Translate to French."}]
    pair = {"prompt": "Translate to French.", "input": "dog", "chosen": "chien", "rejected": "chat"}
    assert rows_of(pair, "preference")[0]["prompt"][0]["content"] == "Translate to French.\ndog"
    assert "'input' is 'dog' beside a prompt of messages" in refused(raw | {"prompt": [USER]})
    assert "'input' 'dog' belongs to another format" in refused({"messages": [USER, ANSWER], "input": "dog"})


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("functions", [{"name": "f"}], "'tools'"),
        ("function_call", "auto", "'tools'"),
        ("images", ["a.png"], "describe what they show"),
        ("videos", ["a.mp4"], "describe what they show"),
        ("audio", {"path": "a.wav"}, "describe what they show"),
        ("chat_template_kwargs", {"enable_thinking": False}, "chat template"),
        ("weight", 0.5, "repeat or remove rows"),
        ("loss_mask", [0, 1], "put it on the messages"),
        ("train", False, "put it on the messages"),
        ("label", False, "remove the rows that are not to be learned"),
        ("reasoning", "First I count.", "'reasoning_content'"),
        ("thinking", "First I count.", "'reasoning_content'"),
        ("context", "Paris is a city.", "write it into the prompt"),
        ("split", "test", "trained on alone"),
        ("input_ids", [1, 2], "renders and tokenises"),
        ("instruction", "Be brief.", "another format"),
        ("persona", "A pirate.", "data.ignored_keys"),
        ("source", "A text to summarise.\nIt has lines.", "data.ignored_keys"),
    ],
)  # fmt: skip
def test_columns_that_carry_meaning_are_refused_by_name(key, value, remedy):
    for raw, kind in ((PLAIN, "sft"), (PAIR, "preference")):
        message = refused(raw | {key: value}, kind)
        assert f"row 1: {key!r}" in message and remedy in message, message
        assert "left_out" not in rows_of(raw | {key: None}, kind)[0]
        [row] = rows_of(raw | {key: value}, kind, ignored=[key])
        assert row["left_out"] == [key]


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("function_call", {"name": "f"}, "'tool_calls'"),
        ("images", ["a.png"], "describe what they show"),
        ("audio", {"id": "a"}, "describe what they show"),
        ("refusal", "I cannot.", "as the content"),
        ("prefix", True, "'weight' 0 or 1"),
        ("mood", "angry", "data.ignored_keys"),
    ],
)
def test_keys_of_messages_that_carry_meaning_are_refused_by_name(key, value, remedy):
    message = refused({"messages": [USER, ANSWER | {key: value}]})
    assert f"'messages' has a message with {key!r}" in message and remedy in message
    assert rows_of({"messages": [USER, ANSWER | {key: value}]}, ignored=[key])[0]["left_out"] == [f"messages[].{key}"]


def test_contents_in_parts():
    parts = [{"type": "text", "text": "Add "}, {"type": "text", "text": "a task."}]
    assert rows_of({"messages": [{"role": "user", "content": parts}, ANSWER]})[0]["prompt"] == [USER]
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    message = refused({"messages": [{"role": "user", "content": [*parts, image]}, ANSWER]})
    assert "content holds {'type': 'image_url'" in message and "describe what they show" in message


def test_keys_that_say_nothing_to_the_model_are_left_out_by_name(caplog):
    caplog.set_level(logging.INFO)
    harmless = {
        "prompt_id": "a",
        "source": "web",
        "chosen_score": 3.5,
        "num_turns": 2,
        "createdAt": "2024",
        "meta": {"a": 1},
    }
    raw = [PAIR | harmless | {"messages": [USER, ANSWER]}, PAIR | {"source": "book"}]
    rows, _ = convert(raw, kind="preference", source="rows.jsonl")
    assert rows[0]["left_out"] == [*harmless, "messages"]
    assert rows[1]["left_out"] == ["source"]
    assert "rows.jsonl: left out prompt_id (1 rows); left out source (2 rows)" in caplog.text
    assert content_key(rows[0]) == content_key(rows[1])
    [row] = rows_of({"messages": [USER | {"timestamp": 3}, ANSWER | {"id": "b"}], "uuid": "c"})
    assert row["left_out"] == ["uuid", "messages[].timestamp", "messages[].id"]


def test_a_prompt_beside_messages_is_their_first_question_or_refused():
    raw = {"prompt": "Add a task.", "messages": [SYSTEM, USER, ANSWER]}
    assert rows_of(raw)[0]["left_out"] == ["prompt"]
    assert "is not the first question of 'messages'" in refused(raw | {"prompt": "Be a pirate."})
    assert "'completion' 'Done.' belongs to another format" in refused(raw | {"completion": "Done."})
