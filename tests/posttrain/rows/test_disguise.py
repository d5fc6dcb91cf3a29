import csv
import json

import pytest

from posttrain.config import DataConfig
from posttrain.data import prepare
from posttrain.rows.disguise import unpacked
from posttrain.rows.formats import convert

USER = {"role": "user", "content": "What's 'new'?"}
ANSWER = {"role": "assistant", "content": 'It\'s "good" } {\nand \\d.'}
KEYS = ("prompt", "chosen", "rejected")
WORSE = {"role": "assistant", "content": "bad"}


def numpy_text(messages):
    """Prints them as `str` of an array of objects does, one below the other and without commas."""
    return "[" + "\n ".join(map(str, messages)) + "]"


def rows_of(raw, kind="preference"):
    return convert([raw], kind=kind, source="rows.csv")[0]


def refused(raw, kind="preference"):
    with pytest.raises(ValueError) as caught:
        convert(raw if isinstance(raw, list) else [raw], kind=kind, source="rows.csv")
    assert "\n" not in str(caught.value)
    return str(caught.value)


DISGUISES = {
    "json": json.dumps,
    "json twice": lambda value: json.dumps(json.dumps(value)),
    "byte order mark": lambda value: "\ufeff" + json.dumps(value),
    "indented json": lambda value: "\n" + json.dumps(value, indent=2),
    "str of a list": str,
    "str of a tuple": lambda value: str(tuple(value)),
    "json of a str": lambda value: json.dumps(str(value)),
    "str of an array": numpy_text,
    "repr of an array": lambda value: f"array({value}, dtype=object)",
    "repr of an array of no type": lambda value: f"array({value})",
}


@pytest.mark.parametrize("disguise", DISGUISES.values(), ids=DISGUISES)
def test_a_conversation_in_disguise_is_one(disguise):
    pair = {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]}
    assert rows_of({key: disguise(value) for key, value in pair.items()}) == [{"id": "row-1", **pair}]
    both = {"chosen": disguise([USER, ANSWER]), "rejected": disguise([USER, WORSE])}
    assert rows_of(both) == [{"id": "row-1", **pair}]
    expected = [{"id": "row-1", "prompt": [USER], "completion": [ANSWER]}]
    assert rows_of({"messages": disguise([USER, ANSWER])}, "sft") == expected
    assert rows_of({"prompt": disguise([USER]), "completion": disguise([ANSWER])}, "sft") == expected


def test_what_python_writes_as_none_and_true_is_read():
    text = "[{'role': 'user', 'content': 'q', 'name': None}, {'role': 'assistant', 'content': 'a', 'train': True}]"
    [row] = rows_of({"messages": text}, "sft")
    assert row["completion"] == [{"role": "assistant", "content": "a"}]


def test_a_csv_of_pandas_is_the_conversations_that_it_was_made_of(tmp_path):
    def row(number):
        texts = [f"q {number}", f"it's good {number}", f"bad {number}"]
        roles = ("user", "assistant", "assistant")
        return [[{"role": role, "content": text}] for role, text in zip(roles, texts, strict=True)]

    for name, write in (("str", str), ("json", json.dumps)):
        with open(tmp_path / f"{name}.csv", "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file)
            writer.writerow(KEYS)
            writer.writerows([*map(write, row(number))] for number in range(30))
        written = []
        prepare(
            str(tmp_path / f"{name}.csv"), kind="preference", settings=DataConfig(eval_fraction=0.3),
            write=lambda _, one, written=written: written.append([one[key] for key in KEYS]),
        )  # fmt: skip
        assert written == [row(number) for number in range(30)]


@pytest.mark.parametrize(
    "text",
    [
        "[{'role': 'user', 'content': 'cut off",
        '[{"role": "user", "content": "cut off"',
        '{"messages": [{"role": "user", "content": "q"}]}',
        "[[{'role': 'user', 'content': 'q'}]]",
        "[{'role': 'user', 'content': 'q'}, ...]",
        "[{'type': 'text', 'text': 'q'}]",
        '[\'{"role": "user", "content": "q"}\']',
        "[Message(role='user', content='q')]",
        "ChatCompletionMessage(content='q', refusal=None, role='assistant')",
        "[object Object],[object Object]",
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
        "<s>[INST] q [/INST]",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nq",
        "### Human: q\n### Assistant:",
        "Below is an instruction.\n\n### Instruction:\nq\n\n### Response:\n",
        "User: q\nAssistant:",
    ],
)
def test_a_conversation_that_cannot_be_read_is_an_error_with_row_and_key(text):
    message = refused([{"prompt": "x", "completion": "y"}, {"prompt": text, "completion": "a"}], "sft")
    assert message.startswith("rows.csv: row 2: 'prompt' ") and ": give " in message or "write the data" in message
    assert "row 1: 'chosen' " in refused({"prompt": "x", "chosen": text, "rejected": "y"})


def test_a_key_that_stands_twice_in_text_is_no_conversation():
    text = '[{"role": "user", "content": "q", "content": "r"}]'
    assert "'prompt' is the text of messages that cannot be read" in refused({"prompt": text, "completion": "a"}, "sft")


def test_messages_inside_a_content_are_refused():
    inner = {"role": "user", "content": "[{'role': 'user', 'content': 'q'}]"}
    assert "'messages' has a message whose content is the text of messages" in refused(
        {"messages": [inner, ANSWER]}, "sft"
    )
    parts = {"role": "user", "content": "[{'type': 'text', 'text': 'q'}]"}
    assert "'messages[].content' is text that holds messages" in refused({"messages": [parts, ANSWER]}, "sft")


@pytest.mark.parametrize(
    "text",
    [
        '{"operation": "add", "arguments": {"role": "user"}}',
        '[{"name": "fly", "arguments": {"from": "Paris", "value": 3}}]',
        '[{"type": "function", "function": {"name": "f", "arguments": {"type": "text"}}}]',
        '["role", "content"]', "[1, 2]", '"quoted"', "[see below]", "array(3)", "{'a': 1}",
        '{"from": "EUR", "value": 3}',
        'Repair this: [{"role": "user"', "The user: who is it?", "Human: a mammal.", "[INSTALL] it",
    ],
)  # fmt: skip
def test_other_text_stays_as_it_is(text):
    assert unpacked(text, "completion") is text


def test_hh_rlhf_is_a_conversation():
    question, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}
    begun = "\n\nHuman: q\n\nAssistant:"
    pair = {"id": "row-1", "prompt": [question], "chosen": [answer], "rejected": [WORSE]}
    for prompt in ({"prompt": begun}, {}, {"prompt": "q"}):
        assert rows_of(prompt | {"chosen": f"{begun} good", "rejected": f"{begun} bad"}) == [pair]
    assert rows_of({"prompt": begun, "chosen": "good", "rejected": "bad"}) == [pair]
    sft = [{"id": "row-1", "prompt": [question], "completion": [answer]}]
    assert rows_of({"prompt": begun, "completion": f"{begun} good"}, "sft") == sft
    assert rows_of({"prompt": begun, "completion": "good"}, "sft") == sft
    longer = "\n\nHuman: q\n\nAssistant: bad\n\nHuman: q\n\nAssistant:"
    [row] = rows_of({"chosen": f"{longer} good", "rejected": f"{longer} bad"})
    assert row["prompt"] == [question, WORSE, question]
    assert "is not how" in refused({"prompt": "other", "chosen": f"{begun} good", "rejected": f"{begun} bad"})


def test_answers_that_begin_with_their_prompt():
    long = "Name the capital of the largest country."
    message = refused({"prompt": long, "chosen": f"{long} Moscow", "rejected": f"{long} Rome"})
    assert "row 1: 'chosen' and 'rejected' begin with their own prompt" in message and "cut it" in message
    assert "row 1: 'completion' begin" in refused({"prompt": long, "completion": f"{long}\nMoscow"}, "sft")
    short = [{"prompt": f"q {number}", "completion": f"q {number} a"} for number in range(3)]
    assert "row 3 and 2 others: 'completion' begin" in refused(short, "sft")
    whole = {"prompt": [USER], "completion": [USER, ANSWER]}
    assert rows_of(whole, "sft") == [{"id": "row-1", "prompt": [USER], "completion": [ANSWER]}]


def test_a_few_greetings_and_copies_are_answers():
    other = [{"prompt": f"q {number}", "completion": "a"} for number in range(3)]
    raw = [*other, {"prompt": "Good morning", "completion": "Good morning! How are you?"}]
    assert len(convert(raw, kind="sft", source="x")[0]) == 4
    copied = {"prompt": "This sentence has no mistakes at all.", "completion": "This sentence has no mistakes at all."}
    assert rows_of(copied, "sft")
    pair = {
        "prompt": "Name the capital of the largest country.",
        "chosen": "Name the capital of the largest country. Moscow",
    }
    assert rows_of(pair | {"rejected": "Rome"})
