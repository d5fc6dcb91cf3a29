import json

import jsonschema
import pytest

from examples.task_api import generate, tiny
from posttrain.rows import chat, formats, sources

SCHEMA = json.loads(generate.SCHEMA_PATH.read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


@pytest.fixture(scope="module")
def files():
    return generate.generate()


def answer_of(message):
    """The call as an object; None for the sentence that declines."""
    text = message[0]["content"]
    return None if text == generate.DECLINE else json.loads(text)


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_right_answer_follows_the_schema_and_every_operation_occurs(files):
    answers = [
        answer_of(row.get("completion") or row["chosen"])
        for name in ("sft", "eval", "preferences")
        for row in files[name]
    ]
    calls = [answer for answer in answers if answer is not None]
    for call in calls:
        VALIDATOR.validate(call)
    assert 0.1 < 1 - len(calls) / len(answers) < 0.3
    assert {call["operation"] for call in calls} == set(SCHEMA["properties"]["operation"]["enum"])


def test_every_rejected_answer_is_wrong(files):
    mistakes = set()
    for row in files["preferences"]:
        assert row["rejected"] != row["chosen"]
        if row["mistake"] != "prose" and answer_of(row["rejected"]) is not None:
            assert answer_of(row["rejected"]) != answer_of(row["chosen"])
        mistakes.add(row["mistake"])
    assert mistakes == {mistake.__name__ for mistake in (*generate.MISTAKES, generate.called)}


@pytest.mark.parametrize(
    "answer",
    [
        {"operation": "create_task", "arguments": {}},
        {"operation": "create_task", "arguments": {"title": "x", "assignee": "me"}},
        {"operation": "create_task", "arguments": {"title": "x", "due": "tomorrow"}},
        {"operation": "update_task", "arguments": {"task_id": 1}},
        {"operation": "complete_task", "arguments": {"task_id": "1"}},
        {"operation": "list_tasks", "arguments": {"status": "lost"}},
        {"operation": "drop_table", "arguments": {}},
        {"operation": "delete_task"},
    ],
)
def test_the_schema_refuses(answer):
    assert not VALIDATOR.is_valid(answer)


def test_no_request_is_in_two_files_or_twice(files):
    keys = [formats.prompt_key(row) for rows in files.values() for row in rows]
    assert len(keys) == len(set(keys))


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        generate.main(["--output", str(tmp_path / name), "--num-sft", "20", "--num-preferences", "10", "--seed", "3"])
    for file in ("sft", "preferences", "eval", "red_team", "off_topic"):
        assert (tmp_path / "a" / f"{file}.jsonl").read_bytes() == (tmp_path / "b" / f"{file}.jsonl").read_bytes()
    assert generate.generate(seed=3) != generate.generate(seed=4)


def test_more_prompts_than_there_are_is_refused():
    with pytest.raises(ValueError, match="at most"):
        generate.generate(num_red_team=1000)
    with pytest.raises(ValueError, match="ask for fewer"):
        generate.generate(num_off_topic=1000)


def test_rows_are_short_for_the_tiny_tokenizer(files, tiny_model):
    tokenizer = chat.load_tokenizer(tiny_model)
    rows = [row for name in ("sft", "eval", "preferences") for row in files[name]]
    lengths = [len(chat.render(tokenizer, row["prompt"], row.get("completion") or row["rejected"])) for row in rows]
    assert max(lengths) < 128


def test_pretraining_lowers_the_loss_and_changes_no_file_but_the_weights(tiny_model, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    taught = tiny.build_tiny_model(tmp_path / "taught", seed=0, num_steps=5)
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    ):
        assert (taught / name).read_bytes() == (tiny_model / name).read_bytes()
    tokenizer = chat.load_tokenizer(tiny_model)
    row = generate.generate()["eval"][0]
    ids = torch.tensor([chat.render(tokenizer, row["prompt"], row["completion"])])
    with torch.no_grad():
        losses = [
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(input_ids=ids, labels=ids).loss.item()
            for path in (tiny_model, taught)
        ]
    assert losses[1] < losses[0] - 0.5


def test_the_same_seed_gives_the_same_model(tiny_model, tmp_path):
    again = tiny.build_tiny_model(tmp_path / "again", seed=0)
    other = tiny.build_tiny_model(tmp_path / "other", seed=1)
    weights = [(path / "model.safetensors").read_bytes() for path in (tiny_model, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_the_line_reads_the_files_as_they_are(task_api_files):
    for name, kind in (("sft", "sft"), ("preferences", "preference"), ("eval", "sft")):
        path = str(task_api_files / f"{name}.jsonl")
        rows, _ = formats.convert(sources.read_rows(path), kind=kind, source=path)
        assert rows
